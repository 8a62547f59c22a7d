"""What a run printed, of one of its processes, and where the rest is."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from hyperp.rundir import failure
from hyperp.rundir.record import METRIC
from hyperp.sweeps.account import last_submissions
from hyperp.sweeps.local import background_pools
from hyperp.sweeps.runs.run import load_record, output_file_name


def read_logs(root: Path, run_id: str, rank: int | None) -> dict[Path, str]:
    """Logs and tracebacks of a run: of its main process and the one that failed first, or of `rank`."""
    run_dir, words = root / run_id, {one.rank: one for one in failure.read_failures(root / run_id)}
    failing = failure.first_failing_rank(run_dir)
    ranks = [rank] if rank is not None else sorted({0, failing or 0})
    found = _texts([run_dir / output_file_name(one) for one in ranks])
    traced = _texts([run_dir / "error.txt"]) if rank in (None, failing or 0) else {}
    told = rank if rank is not None else failing
    if rank is None and told not in words:  # it was killed; what the other_logs met says where
        told = min(words, default=None)
    if not traced and told in words:
        traced = {run_dir / failure.ERROR_FILE.format(rank=told): words[told].traceback}
    found |= traced | _texts(_of_job(root, run_id, ranks))
    if rank is None and not found:  # it may have failed before it could print
        return _texts(background_pools.pool_logs(root, run_id))
    return found


def describe_end(run_dir: Path) -> str | None:
    """How a run ended, in one line; None if it has no record that can be read."""
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
    """The logs of a run's other processes, by rank."""
    there = [path for path in (root / run_id).glob("output*.log") if path not in shown]
    return sorted(there, key=lambda path: (len(path.name), path.name))


def _of_job(root: Path, run_id: str, ranks: list[int]) -> Iterator[Path]:
    """What the processes of its last job read_logs outside of it."""
    one = last_submissions(root, {}).get(run_id)
    if one and one.job_id:
        for rank in ranks:
            for kind in ("out", "err"):
                yield root / one.submission.folder / f"{one.job_id}_{rank}_log.{kind}"


def _texts(paths: Iterable[Path]) -> dict[Path, str]:
    return {path: path.read_text(errors="replace") for path in paths if path.is_file()}
