"""The slopes of a coordinate check, as a table to print and as the rows of slopes.csv."""

from collections.abc import Sequence

from hyperp.analysis.diagnostics.coordinates import (
    ACTIVATIONS,
    MEASURES,
    Activation,
    Measure,
    Slope,
    WidthSeries,
    diverged_text,
)
from hyperp.analysis.report.text.console import show_table
from hyperp.analysis.wording import format_number, format_percent

SLOPE_COLUMNS = [
    "parametrization",
    "optimizer",
    "base_lr",
    "activation",
    "slope of its size",
    f"{format_percent()} interval",
    "verdict",
    "slope of its change",
    f"{format_percent()} interval",
    "verdict",
]


def show_coordinates(found: Sequence[WidthSeries], tolerance: float) -> None:
    """Print the slopes at the last step, steps with another verdict, and the runs that were left out."""
    step = last_step(found)
    widths = sorted({width for one in found for width in one.widths})
    title = (
        f"d log(size) / d log(width) at step {step}, widths {', '.join(map(str, widths))}; "
        f"flat: within {tolerance:g} of 0; the step of the largest slope is added where its verdict differs"
    )
    show_table(title, SLOPE_COLUMNS, slope_table(found))
    for one in found:
        for reason, count in one.left_out.items():
            print(f"{one.name}: left out {count} run{'s' * (count != 1)}, {reason}")


def last_step(found: Sequence[WidthSeries]) -> int:
    """The last step that any series has."""
    return max(slope.step for one in found for kind in one.kinds for slope in kind.slopes)


def slope_table(found: Sequence[WidthSeries]) -> list[list[str]]:
    """One row per series and activation, at its last step; a single row if all runs of a series diverged."""
    rows = []
    for one in found:
        names = [one.context["parametrization"] or "-", one.context["optimizer"] or "-"]
        names.append(format_number(one.held.get("base_lr")))
        for kind in one.kinds:
            cells = [cell for measure in MEASURES for cell in _slope_cells(kind, measure)]
            rows.append([*names, ACTIVATIONS[kind.quantity], *cells])
        if not one.kinds and one.diverged:
            words = diverged_text(one.diverged)
            rows.append([*names, "all", "-", "-", words, "-", "-", words])
    return rows


def last_slope(kind: Activation, measure: Measure) -> Slope | None:
    """The slope at the last step, None if the measure has none."""
    slopes = (slope for slope in kind.slopes if slope.measure == measure)
    return max(slopes, key=lambda slope: slope.step, default=None)


def steepest_slope(kind: Activation, measure: Measure) -> Slope | None:
    """The slope of largest magnitude over the steps; None if its verdict is that of the last step."""
    end = last_slope(kind, measure)
    slopes = [slope for slope in kind.slopes if slope.measure == measure and slope.value is not None]
    found = max(slopes, key=lambda slope: abs(slope.value or 0.0), default=None)
    return None if found is None or end is None or found.text == end.text else found


def steepest_text(kind: Activation, measure: Measure) -> str:
    """Such as "step 1: -0.50 shrinks", empty if the last step has the same verdict."""
    found = steepest_slope(kind, measure)
    return "" if found is None else f"step {found.step}: {found.value:+.2f} {found.text}"


def _slope_cells(kind: Activation, measure: Measure) -> list[str]:
    slope = last_slope(kind, measure)
    if slope is None:
        return ["-", "-", "unclear"]
    words = "; ".join(filter(None, (slope.text, steepest_text(kind, measure))))
    if slope.value is None:
        return ["-", "-", words]
    if slope.low is None or slope.high is None:
        return [f"{slope.value:+.2f}", "unknown, one seed", words]
    return [f"{slope.value:+.2f}", f"{slope.low:+.2f} to {slope.high:+.2f}", words]


def slope_records(found: Sequence[WidthSeries]) -> list[dict[str, object]]:
    """Every slope at every step; a single row without a slope if all runs of a series diverged."""
    rows = []
    for one in found:
        names: dict[str, object] = {name: one.context[name] for name in ("parametrization", "optimizer")}
        names["base_lr"] = one.held.get("base_lr")
        for kind in one.kinds:
            of_kind = {"quantity": kind.quantity, "layer": kind.layer}
            rows += [{**names, **of_kind, **_slope_record(slope)} for slope in kind.slopes]
        if not one.kinds and one.diverged:
            unknown = {
                **dict.fromkeys(Slope.model_fields),
                "seeds": 0,
                "verdict": "diverged",
                "diverged": _widths_text(one.diverged),
            }
            rows.append({**names, "quantity": "all", "layer": None, **unknown})
    return rows


def _slope_record(slope: Slope) -> dict[str, object]:
    return {**slope.model_dump(), "diverged": _widths_text(slope.diverged)}


def _widths_text(widths: Sequence[int]) -> str:
    return " ".join(map(str, widths))
