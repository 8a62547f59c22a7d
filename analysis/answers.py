"""What every answer of the Python API has: a headline, a table, and how a notebook shows the two."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a recommendation imports no pandas
    import pandas as pd


class Answer:
    """Base of all answers: `print` gives the headline, a notebook the headline, the notes and the table."""

    def headline(self) -> str:
        """The answer in one line."""
        raise NotImplementedError

    def notes(self) -> Sequence[str]:
        """Further lines that a notebook shows between the headline and the table."""
        return ()

    def to_frame(self) -> "pd.DataFrame":
        """The answer as a table."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.headline()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline()}>"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        lines = "".join(f"<p>{html.escape(line)}</p>\n" for line in (self.headline(), *self.notes()))
        return lines + frame.to_html(index=frame.index.name is not None, na_rep="")
