"""Where the repository lies, and the public sweeps that some tests read where they are at hand."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PUBLIC_SWEEPS = ROOT.parent / "shared" / "data"
