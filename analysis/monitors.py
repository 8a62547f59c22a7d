"""What stability monitors saw of the runs behind a law: does anything grow with scale?

`hyperp-sweep collect` writes the largest values of every run into its table and all of them, step by step,
beside it. Of each scale the runs at the best rate count: that with the lowest loss, mean over seeds.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hyperp.analysis.law import Law
from hyperp.analysis.mapping import read_table
from hyperp.analysis.records import filter_runs, read_runs
from hyperp.analysis.vocabulary import COVARIATES, VARIES

# Column of the table: what it is, the largest over layers, roles and looks of a run.
SUMMARIES = {
    "attention_z_max": "attention Z",
    "router_z_max": "router Z",
    "residual_rms_max": "RMS of the residual stream",
    "outlier_share": "share of outliers",
    "logit_max": "logit",
    "norm_over_radius_max": "norm over radius",
    "max_vio": "MaxVio, mean over steps",
}
# Quantities of the table by step that are drawn, with the role where they have one; layers by the largest.
STEPPED = {
    "attention_z": ("attention Z (largest layer)", None),
    "router_z": ("router Z (largest layer)", None),
    "attention_output_rms": ("attention output RMS (largest layer)", None),
    "mlp_output_rms": ("MLP output RMS (largest layer)", None),
    "residual_rms": ("residual RMS (largest layer)", None),
    "outlier_share": ("share of outliers (largest layer)", None),
    "logit_max": ("largest logit", None),
    "gradient_rms": ("gradient RMS, hidden matrices", "hidden"),
    "update_rms": ("update RMS, hidden matrices", "hidden"),
    "norm_over_radius_max": ("norm over radius (largest matrix)", None),
    "max_vio": ("MaxVio (largest layer)", None),
}


@dataclass(frozen=True)
class Ratio:
    """A summary at the smallest and at the largest value of an axis, all other sizes held."""

    quantity: str
    axis: str
    held: Mapping[str, int]
    sizes: tuple[int, int]
    values: tuple[float, float]

    def sentence(self) -> str:
        """What grows, by how much, and over which sizes."""
        low, high = self.values
        axis = self.axis.replace("_", " ")
        ends = f"{low:.4g} at {axis} {self.sizes[0]:,}, {high:.4g} at {self.sizes[1]:,}"
        held = ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in self.held.items())
        ratio = f"ratio {high / low:.3g}" if low else "no ratio"
        where = f" ({held})" if held else ""
        return f"Largest {SUMMARIES[self.quantity]}: {ends}, {ratio}{where}"


@dataclass(frozen=True)
class Monitors:
    """Of every scale the runs at its best rate, the mean of their summaries, and the best of them by step.

    `scales` has a row a scale: its sizes, lr, seeds and the summary columns. `steps` has the columns scale
    (row of `scales`), step, quantity and value; it is empty if the table by step is not there.
    """

    scales: pd.DataFrame
    steps: pd.DataFrame
    sizes: tuple[str, ...]

    @property
    def quantities(self) -> list[str]:
        """The summaries that any scale has."""
        return [name for name in SUMMARIES if name in self.scales and self.scales[name].notna().any()]

    @property
    def axes(self) -> list[str]:
        """The sizes that vary while all others are held, somewhere."""
        return [axis for axis in self.sizes if self.lines(axis)]

    def lines(self, axis: str) -> list[tuple[dict[str, int], pd.DataFrame]]:
        """The scales along an axis, smallest first, a line for each choice of the other sizes that vary."""
        others = [name for name in self.sizes if name != axis]
        groups = [group for _, group in self.scales.groupby(others)] if others else [self.scales]
        groups = [group.sort_values(axis) for group in groups]
        groups = [group for group in groups if group[axis].iloc[-1] >= VARIES * group[axis].iloc[0]]
        differ = [name for name in others if len({group[name].iloc[0] for group in groups}) > 1]
        return [({name: int(group[name].iloc[0]) for name in differ}, group) for group in groups]

    def ratios(self, axis: str) -> list[Ratio]:
        """Largest over smallest size, for every quantity and line of the axis where both are known."""
        found = []
        for quantity in self.quantities:
            for held, line in self.lines(axis):
                known = line[line[quantity].notna()]
                if len(known) > 1:
                    ends = known.iloc[[0, -1]]
                    sizes = (int(ends[axis].iloc[0]), int(ends[axis].iloc[1]))
                    values = (float(ends[quantity].iloc[0]), float(ends[quantity].iloc[1]))
                    found.append(Ratio(quantity, axis, held, sizes, values))
        return found


def monitors_of(law: Law) -> Monitors | None:
    """The monitors of the law's own records, None if they are not there unchanged or were not monitored."""
    path = Path(law.records)
    file = path / "runs.parquet" if path.is_dir() else path
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != law.records_sha256:
        return None
    extra = [name for name in (*law.ranges, *law.held) if name not in COVARIATES]
    frame = read_runs(path, law.mapping, extra, law.where).frame
    frame = filter_runs(frame, law.where)
    for name, value in law.context.items():
        frame = frame[frame[name] == value]
    frame = frame[(frame["status"] == "finished") & frame["loss"].notna()]
    if frame.empty or "run_id" not in frame or not any(name in frame for name in SUMMARIES):
        return None
    sizes = tuple(name for name in (*COVARIATES, *extra) if name in frame.columns)
    found = _best(frame, sizes)
    metrics = file.with_suffix(".metrics.parquet")
    steps = _by_step(metrics, found["run_id"]) if metrics.is_file() else pd.DataFrame()
    made = Monitors(found.drop(columns="run_id"), steps, sizes)
    return made if made.quantities else None


def _best(frame: pd.DataFrame, sizes: tuple[str, ...]) -> pd.DataFrame:
    """A row a scale: the mean over the seeds at the rate whose mean loss is lowest, and its best run's id."""
    rows = []
    columns = [name for name in SUMMARIES if name in frame]
    for key, group in frame.groupby(list(sizes)):
        lr = group.groupby("lr")["loss"].mean().idxmin()
        runs = group[group["lr"] == lr]
        means = runs[columns].mean(skipna=False).to_dict()
        best = {"lr": lr, "seeds": len(runs), "run_id": runs.sort_values("loss")["run_id"].iloc[0]}
        rows.append({**dict(zip(sizes, key, strict=True)), **best, **means})
    return pd.DataFrame(rows)


def _by_step(path: Path, run_ids: pd.Series) -> pd.DataFrame:
    """What is drawn, of these runs: the largest layer at every step, or the role that is drawn."""
    frame = read_table(path).frame
    missing = {"run_id", "step", "quantity", "role", "value"} - set(frame.columns)
    if missing:
        raise ValueError(f"{path} lacks the column(s) {', '.join(sorted(missing))}; collect it again")
    scale = {run_id: index for index, run_id in run_ids.items()}
    outliers = frame["quantity"].str.endswith("_outliers")
    frame = frame.assign(quantity=frame["quantity"].mask(outliers, "outlier_share"))
    frame = frame[frame["run_id"].isin(scale) & frame["quantity"].isin(STEPPED)]
    role = frame["quantity"].map({name: role for name, (_, role) in STEPPED.items()})
    frame = frame[role.isna() | (role == frame["role"])]
    frame = frame.assign(scale=frame["run_id"].map(scale))
    return frame.groupby(["scale", "quantity", "step"])["value"].max().reset_index()
