"""Print what the published laws say of a run."""

from collections.abc import Sequence

from hyperp.analysis.registry.doctor import Diagnosis
from hyperp.analysis.registry.law import PublishedLaw
from hyperp.analysis.registry.opinion import Opinion, Row
from hyperp.analysis.registry.run_config import RunConfig
from hyperp.analysis.report.text.console import open_console, show_table
from hyperp.analysis.wording import format_number

COLUMNS = ["law", "lr", "beyond its range", "does not match"]


def show_opinion(opinion: Opinion) -> None:
    """Print the laws of the optimizer, those of others, their sources, and the words."""
    same = [row for row in opinion.rows if row.same_optimizer and row.lr is not None]
    other = [row for row in opinion.rows if not row.same_optimizer and row.lr is not None]
    if same:
        columns = [*COLUMNS, *(f"over {one.name}" for one in opinion.own)]
        columns += [] if opinion.plan.lr is None else ["over the plan"]
        rows = [[*_cells(row), *_ratios(row, opinion)] for row in same]
        show_table(f"Laws of {opinion.plan.optimizer}", columns, rows)
    if other:
        title = "Laws of other optimizers, whose rates mean another step and are not converted"
        show_table(title, ["law", "optimizer", *COLUMNS[1:]], [_cells(row) for row in other])
    out = open_console()
    silent = [row for row in opinion.rows if row.lr is None]
    lines = [*opinion.words, *_decay_lines(opinion)]
    reference = opinion.reference_words()
    lines += [] if reference is None else [reference]
    lines += [f"assumed: {line}" for line in opinion.assumed]
    lines += opinion.declined
    lines += [f"{row.law.id} needs {', '.join(row.needs)}" for row in silent]
    out.print("\n".join(lines) + "\n", markup=False)
    out.print("\n".join(_source_lines([row.law for row in (*same, *other)])), markup=False)


def _cells(row: Row) -> list[str]:
    """The cells of COLUMNS, and of a law of another optimizer its name."""
    mismatch = [one for one in row.mismatch if not one.startswith("optimizer ")]
    mismatch += [] if row.starts_from is None else [f"not independent: scales {row.starts_from}"]
    whose = [] if row.same_optimizer else [row.law.optimizer]
    return [row.law.id, *whose, format_number(row.lr), _reach(row), "; ".join(mismatch) or "-"]


def _ratios(row: Row, opinion: Opinion) -> list[str]:
    cells = []
    for one in opinion.own:
        if one.name == row.starts_from:
            cells.append("starts from it")
            continue
        inside = "inside" if row.within_own[one.name] else "outside"
        cells.append(f"{row.to_own[one.name]:.3g}, {inside} its interval")
    return cells if row.to_plan is None else [*cells, f"{row.to_plan:.3g}"]


def _reach(row: Row) -> str:
    """Such as "tokens 60.1 x, depth inside, width unpublished"."""
    words = []
    for name, factor in row.extrapolation.items():
        words.append(
            f"{name} {'unpublished' if factor is None else 'inside' if factor == 1 else f'{factor:.3g} x'}"
        )
    return ", ".join(words) or "-"


def _decay_lines(opinion: Opinion) -> list[str]:
    lines = []
    for one in opinion.decay:
        decay = f"a weight decay of {format_number(one.weight_decay, 3)}"
        planned = "" if one.planned is None else f"; you plan {format_number(one.planned)}"
        lines.append(
            f"{one.law.title}: at lr {format_number(one.lr)} {decay}, which averages over "
            f"{one.timescale:.3g} of the run{planned}"
        )
    return lines


def _source_lines(laws: Sequence[PublishedLaw]) -> list[str]:
    lines = []
    for law in laws:
        parts = [f"{law.moment} rate of {law.group}", law.convention]
        parts += [f"converted: {law.conversion}"] if law.conversion else []
        parts += [law.error] if law.error else []
        parts += [f"{law.runs} runs"] if law.runs else []
        about = "; ".join([*parts, *law.notes])
        lines.append(f"{law.id}: {law.form} ({about}). {'; '.join(law.sources)}")
    return lines


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what a configuration means, what breaks a rule, and the opinion on it."""
    out = open_console()
    lines = [f"{diagnosis.path}, read as {diagnosis.config.trainer}", *_run_lines(diagnosis.config)]
    lines += [f"not worked out: {line}" for line in diagnosis.config.unread]
    out.print("\n".join(lines) + "\n", markup=False)
    if not diagnosis.findings:
        out.print("No rule that is known here is broken.\n", markup=False)
    for finding in diagnosis.findings:
        out.print(f"{finding.rule}: {finding.message} ({finding.source})\n", markup=False)
    if diagnosis.opinion is None:
        out.print("No opinion: give --optimizer and at least one size of the run.", markup=False)
    else:
        show_opinion(diagnosis.opinion)


def _run_lines(config: RunConfig) -> list[str]:
    """The sizes, the words and the rates that are known, a line each."""
    sizes = config.target.model_dump(exclude_none=True) | ({"steps": config.steps} if config.steps else {})
    words = {"optimizer": config.optimizer, "embedding": config.embedding_optimizer}
    words |= {"schedule": config.schedule, "parametrization": config.parametrization}
    if config.tied_embeddings is not None:
        words["embeddings"] = "tied" if config.tied_embeddings else "untied"
    parts = {
        "sizes": [f"{name} {value:.4g}" for name, value in sizes.items()],
        "trained with": [f"{name} {value}" for name, value in words.items() if value],
        "peak rates": [f"{group} {rate:.4g}" for group, rate in config.rates.items()],
        "weight decay": [f"{group} {decay:.4g}" for group, decay in config.weight_decay.items()],
    }
    return [f"{name}: {', '.join(known)}" for name, known in parts.items() if known]
