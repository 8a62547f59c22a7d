"""What `api_loss` returns: loss laws and what follows from them, as answers that show and draw themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperp.analysis.answers import Answer
from hyperp.analysis.files import write_text
from hyperp.analysis.law import schema
from hyperp.analysis.wording import format_interval, format_percent

if TYPE_CHECKING:
    import pandas as pd

    from hyperp.analysis.loss.bootstrap import Draws
    from hyperp.analysis.loss.fit import FloorProfile, LossFit
    from hyperp.analysis.loss.leverage import FittedSeries, Leverage
    from hyperp.analysis.loss.schema import LossLaw
    from hyperp.analysis.queries.isoflop import ComputeOptimal


@dataclass(frozen=True, repr=False)
class FittedLoss(Answer):
    """A fitted loss law; `law` is its record, which loss.json holds. The rest is what its plots need."""

    law: "LossLaw"
    fit: "LossFit"
    draws: "Draws | None"
    profiles: "Sequence[FloorProfile]"

    def headline(self) -> str:
        """The form of the law, how many points and runs it has, and whether the fit converged."""
        runs = "" if self.law.runs is None else f" of {self.law.runs} runs"
        return f"{self.law.formula}; {len(self.law.points)} points{runs}, {self.law.status}"

    def notes(self) -> list[str]:
        """What the law leaves out, and its warnings."""
        from hyperp.analysis.report.text.loss import loss_warnings

        dropped = ", ".join(f"{count} {reason}" for reason, count in self.law.dropped.items()) or "none"
        rows = f"of {self.law.rows} rows, dropped: {dropped}"
        return [rows, *(f"warning: {line}" for line in loss_warnings(self.law))]

    def to_frame(self) -> "pd.DataFrame":
        """A row for each parameter, the index: value, low, high and whether it was held."""
        import pandas as pd

        rows = {name: one.model_dump() for name, one in self.law.parameters.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")

    def save(self, path: str | Path) -> None:
        """Write loss.json, whole or not at all."""
        from hyperp.analysis.loss.schema import save_loss

        save_loss(self.law, path)

    def write_plots(self, folder: str | Path) -> list[Path]:
        """Write the plots of law, residuals and floor as PNG, SVG and CSV; returns the paths."""
        from hyperp.analysis.report.figures.loss import write_loss_figures

        return write_loss_figures(self.fit, self.draws, self.profiles, Path(folder))


@dataclass(frozen=True, repr=False)
class MeasuredLeverage(Answer):
    """How much compute others need relative to the baseline; `answer` is the record, `series` the fits."""

    answer: "Leverage"
    series: "list[FittedSeries]"

    def headline(self) -> str:
        """What the others are compared with."""
        return f"Compute leverage over {self.answer.over}={self.answer.baseline.name}"

    def notes(self) -> list[str]:
        """Why a curve cannot be compared with the baseline, for each such curve, and warnings."""
        apart = [f"{one.other.name}: {one.problem}" for one in self.answer.comparisons if one.problem]
        return [*apart, *(f"warning: {line}" for line in self.answer.warnings)]

    def to_frame(self) -> "pd.DataFrame":
        """A row for each series and common loss: the compute of both and their ratio with its interval."""
        import pandas as pd

        found = self.answer.comparisons
        return pd.DataFrame([{"series": c.other.name, **row.model_dump()} for c in found for row in c.rows])

    def write_plots(self, folder: str | Path) -> list[Path]:
        """Write the curves and their leverage as PNG, SVG and CSV; returns the paths."""
        from hyperp.analysis.report.figures.loss import write_leverage_figure

        return write_leverage_figure(self.answer, self.series, Path(folder))


@dataclass(frozen=True, repr=False)
class Isoflop(Answer):
    """Compute-optimal sizes; `answer` is the record, `law` that of the profiles, in which lr is N.

    `surface` and `draws` are the loss law of all runs and its resamples, None where there are none.
    """

    answer: "ComputeOptimal"
    law: schema.Law
    surface: "LossFit | None"
    draws: "Draws | None"

    def headline(self) -> str:
        """N* and D* with their intervals."""
        n, d, level = self.answer.by_profiles.parameters, self.answer.by_profiles.tokens, self.answer.level
        return (
            f"N* = {n.value:.4g} ({format_interval(n.low, n.high, 4)}), D* = {d.value:.4g} "
            f"({format_interval(d.low, d.high, 4)}) at {self.answer.budget:.4g} FLOPs, "
            f"{format_percent(level)} prediction intervals"
        )

    def notes(self) -> list[str]:
        """How the budgets were grouped, what was left out, and the warnings."""
        from hyperp.analysis.report.text.isoflop import rows_text

        return [rows_text(self.answer), *(f"warning: {line}" for line in self.answer.warnings)]

    def to_frame(self) -> "pd.DataFrame":
        """A row each for profiles and surface, the index: N*, D* and their exponents with intervals."""
        import pandas as pd

        found = {"profiles": self.answer.by_profiles, "surface": self.answer.by_surface}
        rows = {
            way: {
                column: value
                for name in ("parameters", "tokens", "exponent", "tokens_exponent")
                for column, value in (
                    (name, getattr(one, name).value),
                    (f"{name}_low", getattr(one, name).low),
                    (f"{name}_high", getattr(one, name).high),
                )
            }
            for way, one in found.items()
            if one is not None
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("by")

    def profiles_frame(self) -> "pd.DataFrame":
        """A row for each budget: its sizes, state, best size with its interval, tokens and loss."""
        import pandas as pd

        return pd.DataFrame([one.model_dump() for one in self.answer.profiles])

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_text(self.answer.model_dump_json(indent=2) + "\n", path)

    def write_plots(self, folder: str | Path) -> list[Path]:
        """Write profiles and law as PNG, SVG and CSV; returns the paths."""
        from hyperp.analysis.report.figures.isoflop import write_isoflop_figure

        return write_isoflop_figure(self.answer, self.law, self.surface, self.draws, Path(folder))
