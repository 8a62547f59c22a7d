"""Print tables: with colour and lines on a terminal, with plain columns when piped."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def open_console() -> Console:
    """A console that never wraps a piped table."""
    out = Console(highlight=False, soft_wrap=True)
    return out if out.is_terminal else Console(highlight=False, soft_wrap=True, width=240, no_color=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose cells are formatted already."""
    out = open_console()
    table = Table(
        title=escape(title),  # a name such as E[pile] is no markup
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD if out.is_terminal else None,
        padding=(0, 1),
    )
    for name in columns:
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")
