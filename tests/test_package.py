"""The distribution: one top-level package, with every configuration file inside, and light imports."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp(
        "source"
    )  # setuptools would take stale files from a build folder in ROOT
    for folder in ("hyperp", "sweeps", "analysis", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Without isolation, which would fetch setuptools from the network.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_only_top_level_package_is_hyperp(wheel_names):
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"hyperp"}


def test_every_conf_file_is_in_the_wheel(wheel_names):
    conf = {f"hyperp/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(conf) > 10
    assert conf <= wheel_names


def test_every_module_and_template_is_in_the_wheel(wheel_names):
    mapping = {"hyperp": "hyperp", "sweeps": "hyperp/sweeps", "analysis": "hyperp/analysis"}
    for folder, package in mapping.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".j2") and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder)}" in wheel_names
    assert not any("test" in name.split("/")[1] for name in wheel_names if name.endswith(".py"))


# Who may import whom is checked by import-linter (tests/lint.py); here, what an import must not cost.
@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("hyperp.analysis.cli.main", ("torch", "pandas", "scipy", "matplotlib")),
        ("hyperp.config", ("torch", "pandas")),
        ("hyperp.training.train", ("pandas",)),
        ("hyperp.sweeps.cli.main", ("torch", "pandas")),
    ],
)
def test_imports_are_light(module: str, heavy: tuple[str, ...]):
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
