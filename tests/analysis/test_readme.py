"""The examples of analysis/README.md give what the page says, and the tour can be run again."""

import doctest
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.paths import ROOT

TOUR = ROOT / "reports" / "tour.ipynb"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the demo's table, as a user who follows the page has it."""
    (tmp_path / "reports" / "demo").mkdir(parents=True)
    shutil.copy(ROOT / "reports" / "demo" / "runs.csv", tmp_path / "reports" / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("clone")
def test_the_readme_says_what_happens():
    page = ROOT / "analysis" / "README.md"
    flags = doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(page), module_relative=False, optionflags=flags, encoding="utf-8")
    assert found.attempted > 8
    assert found.failed == 0


def numbers(notebook: dict) -> dict[str, float]:
    """The numbers that the last cell of the tour prints, by name."""
    text = "".join(
        "".join(output["text"])
        for output in notebook["cells"][-1]["outputs"]
        if output["output_type"] == "stream"
    )
    return json.loads(text)


@pytest.mark.slow
def test_the_tour_gives_the_numbers_that_it_shows(clone: Path):
    """Runs the notebook in a fresh kernel of this interpreter."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(TOUR, as_version=4)
    shown = numbers(notebook)
    client.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(clone / "reports")}}
    ).execute()
    again = numbers(notebook)
    assert again.keys() == shown.keys()
    np.testing.assert_allclose(list(again.values()), list(shown.values()), rtol=1e-5, atol=0)


def test_the_tour_is_committed_executed_and_names_no_machine():
    text = TOUR.read_text()
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    for path in ("/home/", "/root/", "/tmp/", "/work/", "/Users/"):
        assert path not in text
    assert numbers(notebook)["exponent of tokens"] < 0
