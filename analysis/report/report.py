"""report.md with its plots, from a law's file, and what monitors saw of its runs if they are still there."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from hyperp.analysis.diagnostics.monitors import Monitors, monitors_of
from hyperp.analysis.files import write_text
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.recommend import recommend_rate
from hyperp.analysis.queries.transfer import Transfer, measure_transfer
from hyperp.analysis.queries.validate import Validation
from hyperp.analysis.report.figures import diagnosis as plots_fit
from hyperp.analysis.report.figures import law as plots
from hyperp.analysis.report.figures import monitors as plots_monitors
from hyperp.analysis.report.figures.style import save_figure
from hyperp.analysis.report.text import law as show
from hyperp.analysis.report.text import monitors as show_monitors
from hyperp.analysis.report.text import transfer as show_transfer
from hyperp.analysis.wording import format_degrees, format_percent

VERSIONS = ("hyperp-scaling", "numpy", "scipy", "pandas", "matplotlib")


def write_report(
    law: Law,
    folder: str | Path,
    command: str,
    target: Mapping[str, float] | None = None,
    validation: Validation | None = None,
    extrapolate: bool = False,
) -> list[Path]:
    """Write report.md and the plots (PNG, SVG, CSV) into `folder`; returns their paths.

    Args:
        law: a fitted law.
        folder: made if it is not there.
        command: the command line to print in the report.
        target: sizes to recommend a rate for.
        validation: the answer of `validate`, to print with it.
        extrapolate: recommend beyond the law's reach too.
    """
    out = Path(folder)
    found = None if target is None else recommend_rate(law, target, extrapolate=extrapolate)
    if out.exists() and not out.is_dir():
        raise ValueError(f"-o {out} must be a folder, it is a file")
    out.mkdir(parents=True, exist_ok=True)
    paths = save_figure(*plots.basins(law), out, "basins")
    for name in law.ranges:
        figure, rows = plots.optimum_against(law, name, None if found is None else found.target)
        paths += save_figure(figure, rows, out, f"optimum-{name.replace('_', '-')}")
    tests = test_figures(law)
    for name, (figure, rows) in tests.items():
        paths += save_figure(figure, rows, out, name)
    sections = transfer_sections(law)
    for axis, answers in sections.items():
        paths += save_figure(
            *plots.transfer_panels(law.slices, answers), out, f"transfer-{axis.replace('_', '-')}"
        )
    seen = monitors_of(law)
    stability = None if seen is None else stability_section(seen)
    for part in stability["parts"] if stability else []:
        figure, rows = part.pop("figure")
        paths += save_figure(figure, rows, out, part["picture"])
    text = _render(law, command, found, validation, sections, list(tests), stability)
    write_text(text, out / "report.md")
    return [out / "report.md", *paths]


def test_figures(law: Law) -> dict[str, tuple[Any, plots.Rows]]:
    """The pictures that test the law, by file name: those that its method and slices allow."""
    found = {}
    if law.leave_one_out:
        found["leave-one-out"] = plots_fit.leave_one_out_bars(law)
    curves = law.over == ["lr"] and law.method != "given"
    if curves and law.basin is not None and all(s.optimum and s.optimum.loss for s in law.slices if s.used):
        found["collapse"] = plots_fit.collapse(law)
    if curves:
        figure, rows = plots_fit.rates_sensitivity(law)
        if rows:
            found["rates-per-slice"] = figure, rows
    return found


def stability_section(seen: Monitors) -> dict[str, Any]:
    """The table of scales, and parts: title, file name, figure, table and note (None for no such)."""
    parts: list[dict[str, Any]] = []
    for axis in seen.axes:
        parts.append(
            {
                "title": f"Against {axis.replace('_', ' ')}",
                "picture": f"stability-{axis.replace('_', '-')}",
                "figure": plots_monitors.against_size(seen, axis),
                "table": markdown_table(*show_monitors.ratio_table(seen, axis)),
                "note": show_monitors.length_note(seen, axis),
            }
        )
    if len(seen.steps):
        note = show_monitors.drawn_note(seen, len(plots_monitors.drawn_scales(seen)))
        part = {"title": "Against steps", "picture": "stability-steps", "table": None, "note": note}
        parts.append({**part, "figure": plots_monitors.against_steps(seen)})
    return {"scales": markdown_table(*show_monitors.scale_table(seen)), "parts": parts}


def transfer_sections(law: Law) -> dict[str, list[Transfer]]:
    """Transfer along every axis that the law does not fit and that some group of slices varies."""
    axes = [axis for axis in law.slices[0].covariates if axis not in law.ranges]
    found = {axis: measure_transfer(law.slices, axis, law.level) for axis in axes}
    return {axis: answers for axis, answers in found.items() if answers}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _render(
    law: Law,
    command: str,
    found: Any,
    validation: Validation | None,
    sections: Mapping[str, list[Transfer]],
    tests: Sequence[str],
    stability: Mapping[str, Any] | None,
) -> str:
    used = [s for s in law.slices if s.used]
    names = show.changing_columns(used)
    all_names = show.changing_columns(law.slices)
    excluded = show.excluded_rows(law, all_names)
    python = f"Python {platform.python_version()}"
    versions = ", ".join([python, *(f"{n} {importlib.metadata.version(n)}" for n in VERSIONS)])
    source = Path(__file__).with_name("report.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    optimizer = law.context["optimizer"] or "the runs"
    text = environment.from_string(source).render(
        title=f"Learning rate of {optimizer} against {', '.join(law.covariates)}".replace("_", " "),
        law=law,
        used=len(used),
        context=show.context_text(law.context),
        held=", ".join(f"{n.replace('_', ' ')} {show.cell(v)}" for n, v in law.held.items()) or "nothing",
        degrees=format_degrees(law.df),
        scatter=show.scatter_line(law),
        formulas=[show.formula(law), *(show.formula(law, name) for name in law.also)],
        also=markdown_table(show.also_columns(law), show.also_rows(law)) if law.also else "",
        beside=markdown_table(show.beside_columns(law), show.beside_rows(law)) if law.beside else "",
        tests=show.test_lines(law),
        pictures=tests,
        level=format_percent(law.level),
        exponents=markdown_table(show.exponent_columns(law), show.exponent_rows(law)),
        slices=markdown_table([*names, *show.SLICE_COLUMNS], show.slice_rows(used, names)),
        excluded=markdown_table([*all_names, "state", "reason"], excluded) if excluded else "",
        dropped=", ".join(f"{count} {status}" for status, count in law.dropped.items()) or "none",
        lines=[] if found is None else show.recommendation_lines(law, found),
        warnings=[] if found is None else found.warnings,
        factors="" if found is None else markdown_table(show.FACTOR_COLUMNS, show.factor_rows(found)),
        transfers=[
            {
                "axis": axis,
                "table": markdown_table(
                    [*show_transfer.name_columns(answers), *show_transfer.TRANSFER_COLUMNS],
                    show_transfer.transfer_rows(answers),
                ),
                "ahead": markdown_table(
                    [*show_transfer.name_columns(answers), *show_transfer.AHEAD_COLUMNS],
                    show_transfer.ahead_rows(answers),
                ),
            }
            for axis, answers in sections.items()
        ],
        stability=stability,
        validation=validation,
        validation_table=None
        if validation is None
        else markdown_table(show.VALIDATION_COLUMNS, show.validation_rows(validation)),
        command=command,
        versions=versions,
    )
    return re.sub(r"\n{3,}", "\n\n", text)
