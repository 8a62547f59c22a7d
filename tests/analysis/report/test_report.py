"""The report stands on the law's file alone and says how it was made."""

import re

import numpy as np
import pandas as pd
import pytest

from hyperp.analysis import fit_law
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.recommend import recommend_rate
from hyperp.analysis.report.report import markdown_table, write_report
from hyperp.analysis.report.text.law import formula
from hyperp.analysis.table.validate import Runs


@pytest.fixture(scope="module")
def law(make_ladder) -> Law:
    wide = make_ladder(tokens=(131072,), covariates={"width": 64}, rng_seed=1)
    lost = make_ladder(tokens=(2**20,)).assign(status="diverged", loss=np.nan)
    frame = pd.concat([make_ladder(seed_shift=0.05), wide, lost])
    return fit_law(Runs(frame, "runs.parquet", "cd" * 32), ["tokens"], command="hyperp-law fit COMMAND")


@pytest.fixture(scope="module")
def folder(law, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    write_report(law, folder, "hyperp-law report COMMAND", {"tokens": 2**21})
    return folder


def test_it_holds_the_law_the_commands_and_the_versions(law, folder):
    text = (folder / "report.md").read_text()
    found = recommend_rate(law, {"tokens": 2**21})
    for piece in (
        formula(law),
        f"lr = {found.lr:.4g}",
        f"{found.low:.4g} to {found.high:.4g}",
        f"{law.exponents['tokens'].value:.3f}",
        "-0.32 (10B to 166B tokens",
        "hyperp-law fit COMMAND",
        "hyperp-law report COMMAND",
        "cd" * 32,
        f"hyperp {law.version}",
        "18 diverged",
        "width 64, tokens 131072",
        "0 rate(s)",
        "Transfer over width",
    ):
        assert piece in text, piece
    assert "{{" not in text
    assert "{%" not in text


def test_every_picture_it_shows_is_there_with_its_numbers(folder):
    pictures = re.findall(r"\]\((.*?\.png)\)", (folder / "report.md").read_text())
    assert pictures == [
        "optimum-tokens.png",
        "interval-width.png",
        "leave-one-out.png",
        "collapse.png",
        "rates-per-slice.png",
        "basins.png",
        "transfer-width.png",
    ]
    for name in pictures:
        for suffix in ("png", "svg", "csv"):
            assert (folder / name).with_suffix(f".{suffix}").is_file()
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_every_table_has_as_many_cells_as_its_header(folder):
    tables = re.findall(r"(?:^\|.*\n)+", (folder / "report.md").read_text(), re.MULTILINE)
    assert len(tables) == 8
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_headings_stand_alone(folder):
    lines = (folder / "report.md").read_text().splitlines()
    for index, line in enumerate(lines):
        if line.startswith("#") and index:
            assert lines[index - 1] == lines[index + 1] == "", line


def test_without_a_target_it_recommends_nothing(law, tmp_path):
    write_report(law, tmp_path, "hyperp-law report", None)
    text = (tmp_path / "report.md").read_text()
    assert "prediction interval 0" not in text
    assert "The factors of the recommended rate" not in text


def test_cells_are_escaped():
    assert markdown_table(["a|b"], [["c"]]) == "| a\\|b |\n| --- |\n| c |"
