"""report.md and its figures, from a law; with what monitors saw, if the table of its runs is still there."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from hyperp.analysis.diagnostics.monitors import MonitorFindings, read_monitors
from hyperp.analysis.files import write_text
from hyperp.analysis.law.schema import Law
from hyperp.analysis.queries.recommend import Recommendation, recommend_rate
from hyperp.analysis.queries.transfer import Transfer, transfer_of_law
from hyperp.analysis.queries.validate import Validation
from hyperp.analysis.report.figures.basins import basin_curves, transfer_panels
from hyperp.analysis.report.figures.diagnosis import basin_collapse, fewer_rates_panels, leave_one_out_bars
from hyperp.analysis.report.figures.law import optimum_against
from hyperp.analysis.report.figures.monitors import (
    monitors_against_size,
    monitors_against_steps,
    scales_to_draw,
)
from hyperp.analysis.report.figures.style import Picture, make_folder, save_figure
from hyperp.analysis.report.figures.uncertainty import interval_sources
from hyperp.analysis.report.text.law import (
    basin_lines,
    bend_lines,
    context_text,
    count_line,
    evidence_lines,
    exponent_columns,
    exponent_rows,
    formula,
    other_method_columns,
    other_method_rows,
    prior_lines,
    scatter_line,
    tuned_with_lr_columns,
    tuned_with_lr_rows,
)
from hyperp.analysis.report.text.monitors import drawn_runs_note, ratio_table, run_length_note, scale_table
from hyperp.analysis.report.text.recommendation import (
    FACTOR_COLUMNS,
    VALIDATION_COLUMNS,
    factor_rows,
    recommendation_lines,
    validation_rows,
)
from hyperp.analysis.report.text.slices import (
    changing_columns,
    excluded_rows,
    format_value,
    has_shares,
    slice_columns,
    slice_rows,
)
from hyperp.analysis.report.text.transfer import (
    basis_lines,
    penalty_columns,
    penalty_rows,
    transfer_columns,
    transfer_rows,
)
from hyperp.analysis.wording import format_percent

VERSIONS = ("hyperp-scaling", "numpy", "scipy", "pandas", "matplotlib")


def write_report(
    law: Law,
    folder: str | Path,
    command: str,
    target: Mapping[str, float] | None = None,
    validation: Validation | None = None,
    extrapolate: bool = False,
) -> list[Path]:
    """Write report.md and its figures (PNG, SVG, CSV) into `folder`; returns their paths.

    Args:
        law: a fitted law.
        folder: made if it is not there.
        command: the command line to print in the report.
        target: sizes to recommend a rate for.
        validation: what `validate` answered, to print with it.
        extrapolate: recommend beyond the law's reach too.

    Raises:
        ValueError: `folder` is a file.
        Refusal: the law cannot recommend a rate for `target`.
    """
    out = Path(folder)
    recommendation = None if target is None else recommend_rate(law, target, extrapolate=extrapolate)
    make_folder(out)
    marked = None if recommendation is None else recommendation.target
    paths = save_figure(*basin_curves(law), out, "basins") if law.method != "given" else []
    for name in law.ranges:
        paths += save_figure(*optimum_against(law, name, marked), out, f"optimum-{name.replace('_', '-')}")
    if law.posterior is not None:
        paths += save_figure(*interval_sources(law, marked), out, "interval-width")
    diagnostics = diagnostic_figures(law)
    for name, picture in diagnostics.items():
        paths += save_figure(*picture, out, name)
    transfers = transfers_by_axis(law)
    for axis, answers in transfers.items():
        picture = transfer_panels(law.slices, answers)
        paths += save_figure(*picture, out, f"transfer-{axis.replace('_', '-')}")
    monitors = None if law.method == "given" else read_monitors(law)
    stability = None if monitors is None else stability_section(monitors)
    for part in stability["parts"] if stability else []:
        figure, rows = part.pop("figure")
        paths += save_figure(figure, rows, out, part["picture"])
    text = _render(law, command, recommendation, validation, transfers, list(diagnostics), stability)
    write_text(text, out / "report.md")
    return [out / "report.md", *paths]


def diagnostic_figures(law: Law) -> dict[str, Picture]:
    """The figures that test the law, by file name: those that its method and slices allow."""
    figures = {}
    if law.leave_one_out:
        figures["leave-one-out"] = leave_one_out_bars(law)
    curves = law.over == ["lr"] and law.method != "given"
    if curves and law.basin is not None and all(s.optimum and s.optimum.loss for s in law.slices if s.used):
        figures["collapse"] = basin_collapse(law)
    if curves:
        figure, rows = fewer_rates_panels(law)
        if rows:
            figures["rates-per-slice"] = figure, rows
    return figures


def stability_section(monitors: MonitorFindings) -> dict[str, Any]:
    """The table of scales, and a part for each figure: its title, file name, figure, table and note.

    A part without a table or a note has None there.
    """
    parts: list[dict[str, Any]] = [
        {
            "title": f"Against {axis.replace('_', ' ')}",
            "picture": f"stability-{axis.replace('_', '-')}",
            "figure": monitors_against_size(monitors, axis),
            "table": markdown_table(*ratio_table(monitors, axis)),
            "note": run_length_note(monitors, axis),
        }
        for axis in monitors.axes
    ]
    if len(monitors.steps):
        parts.append(
            {
                "title": "Against steps",
                "picture": "stability-steps",
                "figure": monitors_against_steps(monitors),
                "table": None,
                "note": drawn_runs_note(monitors, len(scales_to_draw(monitors))),
            }
        )
    return {"scales": markdown_table(*scale_table(monitors)), "parts": parts}


def transfers_by_axis(law: Law) -> dict[str, list[Transfer]]:
    """Transfer along every axis that the law does not fit and that some group of slices varies."""
    axes = [axis for axis in law.slices[0].covariates if axis not in law.ranges]
    found = {axis: transfer_of_law(law, axis) for axis in axes}
    return {axis: answers for axis, answers in found.items() if answers}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown; a bar in a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _render(
    law: Law,
    command: str,
    recommendation: Recommendation | None,
    validation: Validation | None,
    transfers: Mapping[str, list[Transfer]],
    pictures: Sequence[str],
    stability: Mapping[str, Any] | None,
) -> str:
    used = [s for s in law.slices if s.used]
    names = changing_columns(used)
    all_names = changing_columns(law.slices)
    excluded = excluded_rows(law, all_names)
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
        context=context_text(law.context),
        held=", ".join(f"{n.replace('_', ' ')} {format_value(v)}" for n, v in law.held.items()) or "nothing",
        count=count_line(law),
        scatter=scatter_line(law),
        beyond_exponents=[*bend_lines(law), *prior_lines(law)],
        basin=basin_lines(law),
        formulas=[formula(law), *(formula(law, name) for name in law.also)],
        also=markdown_table(tuned_with_lr_columns(law), tuned_with_lr_rows(law)) if law.also else "",
        beside=markdown_table(other_method_columns(law), other_method_rows(law)) if law.beside else "",
        tests=evidence_lines(law),
        pictures=pictures,
        level=format_percent(law.level),
        exponents=markdown_table(exponent_columns(law), exponent_rows(law)),
        slices=markdown_table(
            slice_columns(names, law.level, law.over[1:], has_shares(used)), slice_rows(used, names)
        ),
        excluded=markdown_table([*all_names, "state", "reason"], excluded) if excluded else "",
        dropped=", ".join(f"{count} {status}" for status, count in law.dropped.items()) or "none",
        lines=[] if recommendation is None else recommendation_lines(law, recommendation),
        warnings=[] if recommendation is None else recommendation.warnings,
        factors="" if recommendation is None else markdown_table(FACTOR_COLUMNS, factor_rows(recommendation)),
        transfers=[
            {
                "axis": axis,
                "table": markdown_table(transfer_columns(answers), transfer_rows(answers)),
                "penalties": markdown_table(penalty_columns(answers), penalty_rows(answers)),
                "basis": basis_lines(answers),
            }
            for axis, answers in transfers.items()
        ],
        stability=stability,
        validation=validation,
        validation_table=None
        if validation is None
        else markdown_table(VALIDATION_COLUMNS, validation_rows(validation)),
        command=command,
        versions=versions,
    )
    return re.sub(r"\n{3,}", "\n\n", text)
