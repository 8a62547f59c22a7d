"""What the Python API returns: laws and answers that know how to show, plot and save themselves.

pandas and matplotlib are imported only by what needs them: to load a law and recommend a rate takes neither.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from hyperp.analysis.answers import Answer
from hyperp.analysis.law import schema
from hyperp.analysis.table.own_columns import points_in_own_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from statsmodels.regression.linear_model import RegressionResults

    from hyperp.analysis.queries.next_runs import NextRuns
    from hyperp.analysis.queries.recommend import Recommendation
    from hyperp.analysis.queries.transfer import Transfer


def whole_sizes(sizes: Mapping[str, float]) -> dict[str, int | float]:
    """Whole sizes as int, as tables have them.

    Raises:
        ValueError: a size is not one number.
    """
    for name, value in sizes.items():
        if not isinstance(value, Real):
            raise ValueError(f"{name} must be one number, got {value!r}")
    return {n: int(v) if float(v).is_integer() and abs(v) < 2**62 else float(v) for n, v in sizes.items()}


class Law(Answer, schema.Law):
    """A fitted law of the learning rate: everything that law.json holds, and what a user asks of it."""

    def summary(self) -> "pd.DataFrame":
        """A row for each covariate, the index: exponent, se, low, high and the fitted range.

        Fixed exponents have neither an error nor an interval.
        """
        import pandas as pd

        rows = []
        for name, (smallest, largest) in self.ranges.items():
            e = self.exponents.get(name)
            rows.append(
                {
                    "covariate": name,
                    "exponent": self.fixed[name] if e is None else e.value,
                    "se": np.nan if e is None else e.se,
                    "low": np.nan if e is None else e.low,
                    "high": np.nan if e is None else e.high,
                    "range_low": smallest,
                    "range_high": largest,
                }
            )
        return pd.DataFrame(rows).set_index("covariate")

    def slices_frame(self) -> "pd.DataFrame":
        """A row for each slice, also those that the law does not use: sizes, state, optimum, interval."""
        import pandas as pd

        return pd.DataFrame([{"used": one.used, **one.row()} for one in self.slices])

    def predict(self, **sizes: Any) -> "pd.DataFrame":
        """The predicted rate with its prediction interval at these sizes, a row for each target.

        Args:
            sizes: a number or a sequence for every covariate of the law, such as tokens=[5e5, 1e6]; they
                broadcast against each other. Sizes that all slices share may be left out. No target is too
                far: `recommend` refuses, this does not.

        Returns:
            The sizes, lr, low and high; where something was tuned beside the rate, its value, low and high.

        Raises:
            ValueError: a covariate is missing, unknown, not a positive number or other than the law holds it
                at, or the shapes do not broadcast.
        """
        import pandas as pd

        for name in sizes:
            if name not in self.ranges and name not in self.held:
                known = ", ".join((*self.ranges, *self.held))
                raise ValueError(f"size must be one of {known}, got {name!r}")
        missing = [name for name in self.ranges if name not in sizes]
        if missing:
            raise ValueError(f"the law needs {', '.join(missing)}: it varies with it")
        values = {name: np.atleast_1d(np.asarray(value)) for name, value in sizes.items()}
        for name, array in values.items():
            if array.dtype.kind not in "iuf" or not array.size:
                raise ValueError(f"{name} must be a number or several, got {sizes[name]!r}")
        try:
            arrays = np.broadcast_arrays(*values.values())
        except ValueError:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in values.items())
            raise ValueError(f"sizes must have shapes that broadcast, got {shapes}") from None
        frame = pd.DataFrame({name: array.ravel() for name, array in zip(sizes, arrays, strict=True)})
        for name, column in frame.items():
            wrong = column[~((column > 0) & np.isfinite(column))]
            if len(wrong) and name not in self.held:
                raise ValueError(f"{name} must be a positive finite number, got {wrong.iloc[0]}")
            if name in self.held and (column != self.held[str(name)]).any():
                raise ValueError(
                    f"{name} must be {self.held[str(name)]}, which is its value in every slice of the law, "
                    f"got {column[column != self.held[str(name)]].iloc[0]}"
                )
        targets = [{str(n): float(v) for n, v in row.items()} for row in frame.to_dict("records")]
        for response in self.over:
            found = np.array([self.interval_at(target, response) for target in targets])
            prefix = "" if response == "lr" else f"{response}_"
            ends = dict(zip((f"{prefix}low", f"{prefix}high"), found[:, 1:].T, strict=True))
            frame = frame.assign(**{response: found[:, 0], **ends})
        return frame

    def recommend(
        self,
        *,
        optimizer: str | None = None,
        parametrization: str | None = None,
        schedule: str | None = None,
        extrapolate: bool = False,
        **sizes: float,
    ) -> "Recommendation":
        """The learning rate for a target scale, with its prediction interval and every factor.

        Args:
            optimizer, parametrization, schedule: refuse unless the law is for these.
            extrapolate: answer beyond the law's reach, and where its interval says hardly anything.
            sizes: the target; sizes that all slices of the law share may be left out.

        Raises:
            ValueError: a covariate is missing, unknown or out of range.
            Refusal: the law cannot say; its `next_points` would change that.
        """
        from hyperp.analysis.queries.recommend import recommend_rate, refuse_wide_interval

        asked = {"optimizer": optimizer, "parametrization": parametrization, "schedule": schedule}
        context = {name: value for name, value in asked.items() if value is not None}
        with points_in_own_columns(self.mapping):
            found = recommend_rate(self, whole_sizes(sizes), context, extrapolate)
            if not extrapolate:
                refuse_wide_interval(self, found)
        return found

    def next_runs(
        self,
        count: int = 2,
        among: Sequence[Mapping[str, float]] = (),
        gain: float | None = None,
        **target: float,
    ) -> "NextRuns":
        """The runs that narrow the prediction interval at a target most for their cost.

        The answer's `value`, and that of each of its `choices`, say what the slices are expected to save in
        loss at the target, and whether that is worth their FLOPs; see `queries.slice_value`.

        Args:
            count: how many further slices to choose.
            among: the slices to choose from, each a dict of sizes; a grid of octaves unless given.
            gain: the assumed exponent of the loss in the compute of one run at the target, 0.05 unless given.
            target: sizes; 8 times the largest fitted one where left out.

        Raises:
            ValueError: an unknown covariate, or a size, count or gain out of range.
            Refusal: the slices lie exactly on the law, so that no slice would narrow anything.
        """
        from hyperp.analysis.queries.next_runs import next_runs
        from hyperp.analysis.queries.slice_value import GAIN

        offers = [whole_sizes(sizes) for sizes in among]
        with points_in_own_columns(self.mapping):
            return next_runs(self, whole_sizes(target), count, offers, GAIN if gain is None else gain)

    def plot(self, covariate: str, ax: "Axes | None" = None, **target: float) -> "Axes":
        """Draw the slices' optima, the law and its prediction band against one covariate.

        Args:
            covariate: one of the law's, such as "tokens".
            ax: the axes to draw on; new ones of pyplot unless given.
            target: sizes to mark with the recommended rate.

        Raises:
            ValueError: the law has no such covariate.
        """
        from hyperp.analysis.queries.recommend import recommend_rate
        from hyperp.analysis.report.figures.law import plot_optimum

        scale = recommend_rate(self, whole_sizes(target), extrapolate=True).target if target else None
        return plot_optimum(self, covariate, scale, ax)

    def to_statsmodels(self) -> "RegressionResults":
        """The law as a fitted statsmodels WLS model, for its hypothesis tests and summaries.

        The response is ln(lr) less what the fixed exponents add, the columns are "const" and ln of each
        covariate, and a slice weighs one over its variance about the line, tau^2 plus its squared error.
        Coefficients and standard errors are those of the law. `t_test("ln tokens = -0.32")`,
        `wald_test()` and `summary()` are what the law itself does not have.

        Raises:
            ValueError: the law is no regression (method hierarchical), was fitted in linear space, or to
                optima without errors of their own.
        """
        import pandas as pd
        import statsmodels.api as sm

        used = [one for one in self.slices if one.used and one.optimum is not None]
        optima = [one.optimum for one in used if one.optimum is not None]
        errors = [one.se * math.log(2) for one in optima if one.se is not None and one.df]
        if self.space != "log" or self.posterior is not None or len(errors) < len(used):
            raise ValueError(
                "to_statsmodels needs a law in log space whose optima have errors, as by method shared, got "
                f"space {self.space} and method {self.method}"
            )
        sizes = {name: np.log([one.covariates[name] for one in used]) for name in self.ranges}
        y = np.log([one.lr for one in optima]) - sum(b * sizes[name] for name, b in self.fixed.items())
        X = sm.add_constant(pd.DataFrame({f"ln {name}": sizes[name] for name in self.covariates}))
        weights: Any = 1 / (np.square(errors) + self.tau**2)  # statsmodels types them as one number
        return cast("RegressionResults", sm.WLS(y, X, weights).fit(cov_type="fixed scale", use_t=True))

    def save(self, path: str | Path) -> None:
        """Write law.json, whole or not at all."""
        schema.save_law(self, path)

    def headline(self) -> str:
        """The formula of everything that was tuned, and the number of slices used."""
        from hyperp.analysis.report.text.law import formula

        formulas = "; ".join(formula(self, response) for response in self.over)
        return f"{formulas}, {sum(one.used for one in self.slices)} slices"

    def notes(self) -> list[str]:
        """What the law was fitted for, what it leaves out, and its warnings."""
        from hyperp.analysis.report.text.law import context_text

        unused = sum(not one.used for one in self.slices)
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count) or "none"
        excluded = f"{unused} of {len(self.slices)} slices excluded; of {self.rows} rows, dropped: {dropped}"
        return [context_text(self.context), excluded, *(f"warning: {line}" for line in self.warnings)]

    def to_frame(self) -> "pd.DataFrame":
        """The same as `summary`."""
        return self.summary()


class Transfers(Answer, Sequence["Transfer"]):
    """The transfer along one axis, one for each group of slices that differ in nothing else.

    `warnings` say what a reader should know of the table.
    """

    def __init__(self, axis: str, groups: Sequence["Transfer"], warnings: Sequence[str] = ()):
        self.axis = axis
        self.warnings = list(warnings)
        self._groups = list(groups)

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, index: int) -> "Transfer": ...
    @overload
    def __getitem__(self, index: slice) -> "Sequence[Transfer]": ...
    def __getitem__(self, index: int | slice) -> "Transfer | Sequence[Transfer]":
        return self._groups[index]

    def __iter__(self) -> "Iterator[Transfer]":
        return iter(self._groups)

    def headline(self) -> str:
        """The axis, and the unit of the drift."""
        return f"Drift of the optimum in octaves per doubling of {self.axis}"

    def notes(self) -> list[str]:
        """The warnings."""
        return [f"warning: {line}" for line in self.warnings]

    def to_frame(self) -> "pd.DataFrame":
        """A row for each group: its context and sizes, and the drift of the optimum in octaves a doubling.

        `seeds_low` and `seeds_high` are the interval of the drift by the runs of each seed alone.
        """
        import pandas as pd

        rows = []
        for one in self._groups:
            drift, penalty = one.drift, one.penalty
            seeds = None if drift is None else drift.by_seed
            rows.append(
                {
                    **{name: value for name, value in one.context.items() if value},
                    **one.held,
                    "drift": None if drift is None else drift.octaves_per_doubling,
                    "low": None if drift is None else drift.low,
                    "high": None if drift is None else drift.high,
                    "seeds_low": None if seeds is None else seeds.low,
                    "seeds_high": None if seeds is None else seeds.high,
                    "penalty_percent": None if penalty is None else penalty.percent,
                    "penalty_low": None if penalty is None else penalty.percent_low,
                    "penalty_high": None if penalty is None else penalty.percent_high,
                    "problem": one.problem,
                }
            )
        return pd.DataFrame(rows)
