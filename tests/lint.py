"""Type-check every file, and check the import contracts, on the package as it is installed.

`sweeps/` is imported as `hyperp.sweeps`, which neither pyright nor import-linter can know from the
repository, and pyright does not enter linked folders. So both look at real copies in build/lint, and this
script fails if pyright looked at fewer files than there are.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "lint"
PLACES = {"hyperp": "hyperp", "sweeps": "hyperp/sweeps", "analysis": "hyperp/analysis", "conf": "hyperp/conf"}
PLACES |= {"tests": "tests"}
IGNORED = shutil.ignore_patterns("__pycache__")


def copy_as_installed() -> int:
    """Copy the code to build/lint in its installed layout; returns how many Python files there are."""
    shutil.rmtree(COPY, ignore_errors=True)
    for folder, place in PLACES.items():
        shutil.copytree(ROOT / folder, COPY / place, ignore=IGNORED, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", COPY)
    return sum(1 for folder in PLACES for path in (ROOT / folder).rglob("*.py"))


def path_in_repository(checked: str) -> str:
    """build/lint/hyperp/sweeps/plan.py as sweeps/plan.py, which an editor opens."""
    relative = Path(checked).relative_to(COPY).as_posix()
    for folder, place in sorted(PLACES.items(), key=lambda item: -len(item[1])):
        if relative.startswith(f"{place}/"):
            return folder + relative.removeprefix(place)
    return relative


def check_types(files: int) -> bool:
    """Run pyright, print what it found; whether it found nothing and looked at all `files`."""
    scripts = Path(sysconfig.get_path("scripts"))
    command = [str(scripts / "pyright"), "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=COPY, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        print(done.stdout, done.stderr, file=sys.stderr)
        return False
    for one in found["generalDiagnostics"]:
        start = one["range"]["start"]
        place = f"{path_in_repository(one['file'])}:{start['line'] + 1}:{start['character'] + 1}"
        print(f"{place}: {one['severity']}: {one['message']} ({one.get('rule', 'syntax')})")
    summary = found["summary"]
    print(f"pyright: {summary['errorCount']} errors in {summary['filesAnalyzed']} of {files} files")
    return not summary["errorCount"] and summary["filesAnalyzed"] >= files


def check_imports() -> bool:
    """Run import-linter against the contracts in pyproject.toml; whether all are kept."""
    scripts = Path(sysconfig.get_path("scripts"))
    environment = {**os.environ, "PYTHONPATH": str(COPY)}
    command = [str(scripts / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=COPY, env=environment).returncode == 0


if __name__ == "__main__":
    count = copy_as_installed()
    kept = [check_types(count), check_imports()]
    sys.exit(not all(kept))
