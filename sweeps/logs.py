"""What a run's processes printed, and how the run ended."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from hyperp.rundir import failure
from hyperp.rundir.record import METRIC
from hyperp.sweeps.account import last_submissions
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.runs.run import load_record, output_file_name


def read_logs(root: Path, run_id: str, rank: int | None) -> dict[Path, str]:
    """A run's logs and tracebacks by path: of rank 0 and the rank that failed first, or of `rank`."""
    run_dir, failures = root / run_id, {one.rank: one for one in failure.read_failures(root / run_id)}
    failing = failure.first_failing_rank(run_dir)
    ranks = [rank] if rank is not None else sorted({0, failing or 0})
    found = _read_texts([run_dir / output_file_name(one) for one in ranks])
    traced = _read_texts([run_dir / "error.txt"]) if rank in (None, failing or 0) else {}
    traced_rank = rank if rank is not None else failing
    if rank is None and traced_rank not in failures:  # it was killed; another rank's traceback says where
        traced_rank = min(failures, default=None)
    if not traced and traced_rank in failures:
        traced = {run_dir / failure.ERROR_FILE.format(rank=traced_rank): failures[traced_rank].traceback}
    found |= traced | _read_texts(_job_log_paths(root, run_id, ranks))
    if rank is None and not found:  # the run may have failed before it could print
        return _read_texts(background_pools.pool_logs(root, run_id))
    return found


def describe_end(run_dir: Path) -> str | None:
    """How a run ended, in one line; None without a readable record."""
    try:
        ended = load_record(run_dir)
    except (OSError, ValueError):
        return None
    if ended is None:
        return None
    loss = "" if ended.loss is None else f", {METRIC}: {ended.loss:.4f}"
    why = f": {ended.reason}" if ended.reason else f" after {ended.steps} steps{loss}"
    return f"{ended.run_id}: {ended.status}{why}"


def other_logs(root: Path, run_id: str, shown: dict[Path, str]) -> list[Path]:
    """The logs of a run's processes that are not in `shown`, by rank."""
    there = [path for path in (root / run_id).glob("output*.log") if path not in shown]
    return sorted(there, key=lambda path: (len(path.name), path.name))


def _job_log_paths(root: Path, run_id: str, ranks: list[int]) -> Iterator[Path]:
    """The files with what the run's last Slurm job printed outside of the run."""
    one = last_submissions(root, {}).get(run_id)
    if one and one.job_id:
        for rank in ranks:
            for kind in ("out", "err"):
                yield root / one.submission.folder / f"{one.job_id}_{rank}_log.{kind}"


def _read_texts(paths: Iterable[Path]) -> dict[Path, str]:
    return {path: path.read_text(errors="replace") for path in paths if path.is_file()}
