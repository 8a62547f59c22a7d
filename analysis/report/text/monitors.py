"""What the stability monitors measured, as tables and sentences of a report."""

from collections.abc import Mapping

from hyperp.analysis.diagnostics.monitors import SUMMARY_NAMES, MonitorFindings, ScaleRatio
from hyperp.analysis.wording import format_number, format_percent

SCALE_COLUMNS = ["best rate", "seeds", "steps", "looks", "runs not counted"]


def scale_table(seen: MonitorFindings) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: for each scale the rate, seeds, steps and looks of its runs, and runs not counted."""
    names = seen.varying_sizes
    rows = []
    for scale, row in seen.scales.iterrows():
        at = int(str(scale))
        rate = format_number(row["lr"]) + (", at the edge of the grid" if row["edge"] else "")
        looks = [range_text(seen.count_range(at, name)) for name in ("steps", "monitor_looks")]
        lost = ", ".join(f"{n} {reason}" for reason, n in seen.excluded[at].items()) or "none"
        sizes = [f"{int(row[name]):,}" for name in names]
        rows.append([*sizes, rate, str(int(row["seeds"])), *looks, lost])
    for sizes, reason in seen.left_out:
        rows.append([*(f"{sizes[name]:,}" for name in names), "-", "-", "-", "-", f"all: {reason}"])
    return [*(name.replace("_", " ") for name in names), *SCALE_COLUMNS], rows


def ratio_table(seen: MonitorFindings, axis: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: every quantity at the smallest and at the largest size, and the ratio of the two."""
    found, name = seen.ratios(axis), axis.replace("_", " ")
    held = any(one.held for one in found)
    columns = ["largest", *(["held"] if held else []), f"at the smallest {name}", f"at the largest {name}"]
    columns += ["ratio", f"{format_percent(seen.level)} interval", "rates", "seeds", "looks"]
    return columns, [_ratio_row(one, held) for one in found]


def _ratio_row(one: ScaleRatio, held: bool) -> list[str]:
    interval = "unknown" if one.low is None or one.high is None else f"{one.low:.3g} to {one.high:.3g}"
    return [
        SUMMARY_NAMES[one.quantity],
        *([sizes_text(one.held)] if held else []),
        *(f"{end.size:,}: {end.mean:.4g} ({end.low:.4g} to {end.high:.4g})" for end in one.ends),
        "none" if one.value is None else f"{one.value:.3g}",
        interval,
        ", ".join(format_number(end.lr) for end in one.ends),
        ", ".join(str(end.seeds) for end in one.ends),
        ", ".join(range_text(end.looks) for end in one.ends),
    ]


def run_length_note(seen: MonitorFindings, axis: str) -> str | None:
    """A note on ratios along an axis on which runs differ in length; None if they do not."""
    scales = [int(scale) for _, line in seen.scales_along(axis) for scale in line.index]
    steps, looks = ([seen.count_range(s, name) for s in scales] for name in ("steps", "monitor_looks"))
    if None in steps or len(set(steps)) == 1:
        return None
    ends = [end for pair in steps if pair for end in pair]
    name = axis.replace("_", " ")
    text = f"Along {name} runs have {min(ends):,} to {max(ends):,} steps"
    if None in looks:
        return f"{text}, and the number of looks is not known: these ratios mix {name} and run length."
    ends = [end for pair in looks if pair for end in pair]
    if min(ends) == max(ends):
        return (
            f"{text}, each with {ends[0]:,} looks: every maximum is over the same number of looks, "
            "though not at the same steps."
        )
    return (
        f"{text} and {min(ends)} to {max(ends)} looks: a maximum over more looks is larger by chance alone, "
        f"so these ratios mix {name} and the number of looks."
    )


def drawn_runs_note(seen: MonitorFindings, drawn: int) -> str:
    """A note on which runs the picture against steps shows; `drawn` is the number of scales in it."""
    some = "" if drawn == len(seen.scales) else f" ({drawn} of {len(seen.scales)} scales, evenly chosen)"
    return (
        f"Each line is one run, the one with the lowest loss at its scale's best rate{some}. "
        "Each marker is a logged value; a cross at the top marks a value that was not finite."
    )


def range_text(pair: tuple[int, int] | None) -> str:
    """Such as "6", "6 to 8" or "unknown"."""
    if pair is None:
        return "unknown"
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Such as "width 64, batch tokens 512"."""
    return ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in sizes.items())
