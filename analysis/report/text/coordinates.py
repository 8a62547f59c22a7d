"""The slopes of a coordinate check, as a table for people and as rows for programs."""

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
    "of its size",
    f"{format_percent()} interval",
    "is",
    "of its change",
    f"{format_percent()} interval",
    "is",
]


def show_coordinates(found: Sequence[WidthSeries], tolerance: float) -> None:
    """Print the slopes at the last step, what other steps say differently, and what was left out."""
    step = last_step(found)
    widths = sorted({width for one in found for width in one.widths})
    title = (
        f"d log(size) / d log(width) at step {step}, widths {', '.join(map(str, widths))}; "
        f"flat is within {tolerance:g} of 0; beside it the step of the largest slope, if it says otherwise"
    )
    show_table(title, SLOPE_COLUMNS, slope_table(found))
    for one in found:
        for reason, count in one.left_out.items():
            print(f"{one.name}: left out {count} run{'s' * (count != 1)}, {reason}")


def last_step(found: Sequence[WidthSeries]) -> int:
    """The last step that any series has."""
    return max(slope.step for one in found for kind in one.kinds for slope in kind.slopes)


def slope_table(found: Sequence[WidthSeries]) -> list[list[str]]:
    """One row a series and activation, at the last step of each; one if all of a series diverged."""
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
    """The slope at the last step."""
    slopes = (slope for slope in kind.slopes if slope.measure == measure)
    return max(slopes, key=lambda slope: slope.step, default=None)


def steepest_slope(kind: Activation, measure: Measure) -> Slope | None:
    """The step with the largest slope, either way, if its verdict is not that of the last step."""
    end = last_slope(kind, measure)
    slopes = [slope for slope in kind.slopes if slope.measure == measure and slope.value is not None]
    found = max(slopes, key=lambda slope: abs(slope.value or 0.0), default=None)
    return None if found is None or end is None or found.text == end.text else found


def steepest_text(kind: Activation, measure: Measure) -> str:
    """Such as "step 1: -0.50 shrinks", empty where the last step says it all."""
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
    """Every slope, at every step; one row without a slope if all of a series diverged."""
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
