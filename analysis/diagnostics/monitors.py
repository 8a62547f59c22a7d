"""What the stability monitors measured in the runs behind a law: does anything grow with scale?

`hyperp-sweep collect` writes the largest values of every run into the table of runs, and all values, step by
step, into a table beside it. Each scale is represented by the runs at its best rate: the rate with the lowest
mean loss over seeds, among those at which every seed of the scale finished. A rate that lost a seed does not
count, since the loss of that seed may be what lowered its mean.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hyperp.analysis.law.schema import Law
from hyperp.analysis.random_effects import t_quantile
from hyperp.analysis.table.read import parquet_columns
from hyperp.analysis.table.validate import filter_runs, read_runs
from hyperp.analysis.vocabulary import LEVEL, VARYING_RATIO
from hyperp.run_table import COVARIATES, metrics_beside

# Column of the table of runs: what it holds, the largest over layers, roles and looks of a run.
SUMMARY_NAMES = {
    "attention_z_max": "attention Z",
    "router_z_max": "router Z",
    "residual_rms_max": "RMS of the residual stream",
    "outlier_share": "share of outliers",
    "logit_max": "logit",
    "norm_over_radius_max": "norm over radius",
    "max_vio": "MaxVio, mean over steps",
}
MEASURED_EVERY_STEP = "max_vio"  # the others are measured at looks only
# Quantity of the table by step that is drawn: its title, and the role that is drawn where it has roles.
STEP_QUANTITIES = {
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
NO_RATE = "no rate at which every seed finished"
NOT_MONITORED = "without monitors"
NOT_FINITE = "with a value that is not finite"


@dataclass(frozen=True)
class QuantityAtScale:
    """A quantity at the best rate `lr` of one scale: its mean, smallest and largest value over seeds.

    `looks` are the fewest and the most looks of a run, None where the table does not say.
    """

    size: int
    lr: float
    seeds: int
    looks: tuple[int, int] | None
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ScaleRatio:
    """A quantity at the largest size along an axis over that at the smallest, all other sizes held constant.

    `ends` are the quantity at the smallest and the largest size. `low` and `high` are an interval for
    `value`, None with a single seed at either end or a mean of 0.
    """

    quantity: str
    axis: str
    held: Mapping[str, int]
    ends: tuple[QuantityAtScale, QuantityAtScale]
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MonitorFindings:
    """For every scale the runs at its best rate, the means of their summaries, and the best of them by step.

    `scales` has a row per scale: its sizes, lr, edge (whether lr is the lowest or the highest rate of the
    grid), seeds, and the means of the summary columns. `runs` are the runs behind the means, with the column
    scale (the row of `scales`), and `excluded` counts for each scale the runs that are not used, by reason.
    `steps` has the columns scale, step, quantity and value; it is empty if there is no table by step.
    `left_out` are the sizes of the scales without a row in `scales`, each with the reason.
    """

    scales: pd.DataFrame
    runs: pd.DataFrame
    excluded: list[dict[str, int]]
    steps: pd.DataFrame
    sizes: tuple[str, ...]
    left_out: Sequence[tuple[Mapping[str, int], str]] = ()
    level: float = LEVEL

    @property
    def quantities(self) -> list[str]:
        """The summaries that any scale has."""
        return [name for name in SUMMARY_NAMES if name in self.scales and self.scales[name].notna().any()]

    @property
    def varying_sizes(self) -> list[str]:
        """The sizes that differ between scales, including scales that were left out."""
        out = [sizes for sizes, _ in self.left_out]
        return [n for n in self.sizes if len({*self.scales[n], *(sizes[n] for sizes in out)}) > 1]

    @property
    def axes(self) -> list[str]:
        """The sizes that vary along at least one line of scales with all other sizes held constant."""
        return [axis for axis in self.sizes if self.scales_along(axis)]

    def scales_along(self, axis: str) -> list[tuple[dict[str, int], pd.DataFrame]]:
        """The scales along an axis, smallest first, a line for each choice of the other sizes that vary."""
        others = [name for name in self.sizes if name != axis]
        groups = [group for _, group in self.scales.groupby(others)] if others else [self.scales]
        groups = [group.sort_values(axis) for group in groups]
        groups = [group for group in groups if group[axis].iloc[-1] >= VARYING_RATIO * group[axis].iloc[0]]
        differ = [name for name in others if len({group[name].iloc[0] for group in groups}) > 1]
        return [({name: int(group[name].iloc[0]) for name in differ}, group) for group in groups]

    def ratios(self, axis: str) -> list[ScaleRatio]:
        """The ratio of every quantity along every line of the axis, between the ends at which it is known."""
        found = []
        for quantity in self.quantities:
            for held, line in self.scales_along(axis):
                known = [int(scale) for scale in line.index[line[quantity].notna()]]
                if len(known) > 1:
                    low, high = known[0], known[-1]
                    ends = (self.at_scale(low, axis, quantity), self.at_scale(high, axis, quantity))
                    values = (self.seed_values(low, quantity), self.seed_values(high, quantity))
                    found.append(ScaleRatio(quantity, axis, held, ends, *ratio_of_means(*values, self.level)))
        return found

    def seed_values(self, scale: int, quantity: str) -> np.ndarray:
        """The values of a quantity at the best rate of a scale, one for each seed."""
        return self.runs.loc[self.runs["scale"] == scale, quantity].to_numpy(dtype="float64")

    def at_scale(self, scale: int, axis: str, quantity: str) -> QuantityAtScale:
        """A quantity at a scale, whose size along `axis` stands with it."""
        values = self.seed_values(scale, quantity)
        size, lr = self.scales.at[scale, axis], self.scales.at[scale, "lr"]
        low, high = float(values.min()), float(values.max())
        return QuantityAtScale(
            size=int(str(size)),
            lr=float(str(lr)),
            seeds=len(values),
            looks=self.count_range(scale, "steps" if quantity == MEASURED_EVERY_STEP else "monitor_looks"),
            mean=min(
                max(float(values.mean()), low), high
            ),  # rounding can move the mean of equal values off them
            low=low,
            high=high,
        )

    def count_range(self, scale: int, column: str) -> tuple[int, int] | None:
        """The fewest and the most `monitor_looks` or `steps` of the runs of a scale, None if unknown."""
        own = self.runs.loc[self.runs["scale"] == scale]
        if column not in own or own[column].isna().any():
            return None
        return int(own[column].min()), int(own[column].max())


def ratio_of_means(
    first: np.ndarray, second: np.ndarray, level: float
) -> tuple[float | None, float | None, float | None]:
    """Mean of `second` over mean of `first`, and the ends of its interval at `level`, from the log ratio.

    The variance of the logarithm of a mean is s^2 / (n mean^2) to first order (delta method); degrees of
    freedom are Welch's, since the spread over seeds need not be the same at both ends. Seeds are not paired:
    the same seed at two scales draws other weights. All three are None if the means are not both positive;
    the interval is None if either side has a single value.
    """
    means = first.mean(), second.mean()
    if not min(means) > 0:
        return None, None, None
    ratio = float(means[1] / means[0])
    if min(len(first), len(second)) < 2:
        return ratio, None, None
    parts = [float(x.var(ddof=1)) / (len(x) * m * m) for x, m in zip((first, second), means, strict=True)]
    if not sum(parts):
        return ratio, ratio, ratio
    df = sum(parts) ** 2 / sum(p * p / (len(x) - 1) for p, x in zip(parts, (first, second), strict=True))
    half = t_quantile(df, level) * math.sqrt(sum(parts))
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def read_monitors(law: Law) -> MonitorFindings | None:
    """What monitors measured in the law's own runs.

    None if the table that the law was fitted to has changed, is gone, or has no monitored runs.
    """
    path = Path(law.records)
    file = path / "runs.parquet" if path.is_dir() else path
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != law.records_sha256:
        return None
    extra = [name for name in (*law.ranges, *law.held) if name not in COVARIATES]
    frame = read_runs(path, law.mapping, extra, law.where).frame
    frame = filter_runs(frame, law.where)
    for name, value in law.context.items():
        frame = frame[frame[name] == value]
    columns = [name for name in SUMMARY_NAMES if name in frame]
    if frame.empty or "run_id" not in frame or not columns:
        return None
    sizes = tuple(name for name in (*COVARIATES, *extra) if name in frame.columns)
    scales, runs, excluded, left_out = _runs_at_best_rates(frame, sizes, columns)
    if not scales:
        return None
    metrics = metrics_beside(file)
    best_ids = [of_scale.sort_values("loss")["run_id"].iloc[0] for of_scale in runs]
    steps = _largest_by_step(metrics, best_ids) if metrics.is_file() else pd.DataFrame()
    runs = pd.concat([of_scale.assign(scale=index) for index, of_scale in enumerate(runs)])
    findings = MonitorFindings(pd.DataFrame(scales), runs, excluded, steps, sizes, left_out, law.level)
    return findings if findings.quantities else None


def _runs_at_best_rates(
    frame: pd.DataFrame, sizes: tuple[str, ...], columns: list[str]
) -> tuple[
    list[dict[str, object]], list[pd.DataFrame], list[dict[str, int]], list[tuple[dict[str, int], str]]
]:
    """For each scale a row, the monitored runs at its best rate, and counts of unused runs by reason.

    The fourth item has the sizes of the scales that are left out, each with the reason.
    """
    rows, chosen, excluded, left_out = [], [], [], []
    for key, group in frame.groupby(list(sizes)):
        scale = dict(zip(sizes, key, strict=True))
        lr, edge = best_rate(group)
        at = group[group["lr"] == lr]
        runs = at[at[columns].notna().any(axis=1)]
        if runs.empty:
            left_out.append((scale, NO_RATE if lr is None else NOT_MONITORED))
            continue
        # All runs of a scale and rate measure the same quantities: one that only some have was not finite.
        some = [name for name in columns if runs[name].notna().any()]
        lost = {str(name): int(n) for name, n in group["status"].value_counts().items() if name != "finished"}
        lost[NOT_MONITORED] = len(at) - len(runs)
        lost[NOT_FINITE] = int(runs[some].isna().any(axis=1).sum())
        excluded.append({name: n for name, n in lost.items() if n})
        means = runs[columns].mean(skipna=False).to_dict()
        rows.append({**scale, "lr": lr, "edge": edge, "seeds": len(runs), **means})
        chosen.append(runs)
    return rows, chosen, excluded, left_out


def best_rate(group: pd.DataFrame) -> tuple[float | None, bool]:
    """The best rate of one scale's runs, and whether it is the lowest or the highest rate of the grid.

    The best rate has the lowest mean loss among those at which every seed of the scale finished; None if
    there is no such rate.
    """
    finished = group[(group["status"] == "finished") & np.isfinite(group["loss"])]
    whole = finished.groupby("lr")["seed"].nunique() == group["seed"].nunique()
    lost = set(group.loc[~group.index.isin(finished.index), "lr"])
    losses = finished.groupby("lr")["loss"].mean()[whole]
    losses = losses[~losses.index.isin(lost)]
    if losses.empty:
        return None, False
    lr = float(str(losses.idxmin()))
    return lr, lr in (group["lr"].min(), group["lr"].max())


def _largest_by_step(path: Path, run_ids: list[str]) -> pd.DataFrame:
    """The values of these runs that are drawn: at every step the largest layer's, or the drawn role's.

    NaN counts as infinite, so that no other layer's value hides it.
    """
    needed = ["run_id", "step", "quantity", "role", "value"]
    missing = set(needed) - set(parquet_columns(path))
    if missing:
        raise ValueError(f"{path} lacks the column(s) {', '.join(sorted(missing))}; collect it again")
    frame = pd.read_parquet(path, columns=needed, filters=[("run_id", "in", run_ids)])
    outliers = frame["quantity"].str.endswith("_outliers")
    frame = frame.assign(quantity=frame["quantity"].mask(outliers, "outlier_share"))
    frame = frame[frame["quantity"].isin(STEP_QUANTITIES)]
    role = frame["quantity"].map({name: role for name, (_, role) in STEP_QUANTITIES.items()})
    frame = frame[role.isna() | (role == frame["role"])]
    scale = {run_id: index for index, run_id in enumerate(run_ids)}
    frame = frame.assign(scale=frame["run_id"].map(scale), value=frame["value"].fillna(math.inf))
    return frame.groupby(["scale", "quantity", "step"])["value"].max().reset_index()
