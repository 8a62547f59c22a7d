"""Event files of TensorBoard: a run for each folder of them, with settings of HParams or of a file beside."""

from collections import Counter
from pathlib import Path
from typing import Any

from hyperp.analysis.imports.configurations import configuration_beside, read_configuration
from hyperp.analysis.imports.endings import with_early_ends
from hyperp.analysis.imports.logged import History, LoggedRun, Logs, Point
from hyperp.analysis.imports.packages import required

EVENTS = "*events.out.tfevents*"
NO_SETTINGS = "folders of events without settings (HParams, or a configuration beside)"
NO_SCALARS = "folders of events without a scalar"
STATUS = (
    "the events keep no status of some runs: those that are whole, as far as can be told, count as finished"
)
SESSION_STATES = {1: "finished", 2: "failed", 3: "running"}  # of the HParams plugin


def event_folders(folder: Path) -> list[Path]:
    """The folders of events below this one, itself included."""
    return sorted({path.parent for path in folder.rglob(EVENTS)})


def read_tensorboard(folder: Path, config: str | None = None) -> Logs:
    """A run for each folder of events.

    `SummaryWriter.add_hparams` writes into a folder of its own below the run's; these two are one run.

    Args:
        folder: what holds them.
        config: the name of the configuration beside the events, in place of the usual names.

    Raises:
        ValueError: the package tensorboard is missing.
    """
    library = required(
        "tensorboard.backend.event_processing.event_accumulator", "a folder of TensorBoard events"
    )
    sizes = {library.SCALARS: 0, library.TENSORS: 0}  # 0 keeps all
    folders = {}
    for path in event_folders(folder):
        events = library.EventAccumulator(str(path), size_guidance=sizes)
        events.Reload()
        folders[path] = events
    inner = {path: path.parent for path in folders if path.parent in folders and _session(folders[path])[0]}
    runs, left_out = [], Counter[str]()
    for path, events in folders.items():
        if path in inner:
            continue
        parts = [events, *(folders[below] for below, above in inner.items() if above == path)]
        settings, state = _settings(path, parts, config)
        courses = {tag: history for part in reversed(parts) for tag, history in _courses(part).items()}
        if not settings or not courses:
            left_out[NO_SCALARS if settings else NO_SETTINGS] += 1
            continue
        runs.append(LoggedRun(str(path), settings, list(courses), courses.__getitem__, state))
    remarks = (STATUS,) if any(run.status is None for run in runs) else ()
    courses = [[p.step for name in run.metrics for p in run.history(name)] for run in runs]
    ended, early = with_early_ends(runs, courses)
    return Logs(ended, remarks=(*remarks, *early), left_out=left_out)


def _settings(path: Path, parts: list[Any], config: str | None) -> tuple[dict[str, Any], str | None]:
    """The settings of the file beside the events, replaced by those of HParams, and the session's state."""
    beside = configuration_beside(path / "events", config)
    settings = read_configuration(beside) if beside is not None else {}
    state = None
    for part in parts:
        found, ended = _session(part)
        settings |= found
        state = ended or state
    return settings, state


def _session(events: Any) -> tuple[dict[str, Any], str | None]:
    """What the HParams plugin wrote: the settings and the state at the end."""
    plugin = required("tensorboard.plugins.hparams.plugin_data_pb2", "HParams of TensorBoard")
    settings, state = {}, None
    try:
        contents = events.PluginTagToContent("hparams")
    except KeyError:  # no such plugin in these events
        return {}, None
    for content in contents.values():
        data = plugin.HParamsPluginData.FromString(content)
        if data.HasField("session_start_info"):
            for name, value in data.session_start_info.hparams.items():
                settings[name] = getattr(value, value.WhichOneof("kind"))
        if data.HasField("session_end_info"):
            state = SESSION_STATES.get(data.session_end_info.status)
    return settings, state


def _courses(events: Any) -> dict[str, History]:
    """The scalars, of TensorFlow 2 too, which keeps them as tensors."""
    found: dict[str, History] = {
        tag: [Point(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    as_array = required("tensorboard.util.tensor_util", "scalars of TensorBoard").make_ndarray
    for tag in events.Tags()["tensors"]:
        values = [(event.step, as_array(event.tensor_proto)) for event in events.Tensors(tag)]
        if values and all(value.size == 1 and value.dtype.kind == "f" for _, value in values):
            found[tag] = [Point(step, float(value.reshape(()))) for step, value in values]
    return found
