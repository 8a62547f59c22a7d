"""The base of every answer that a notebook shows as a table."""

import html
from typing import TYPE_CHECKING

from hyperp.validation import Strict

if TYPE_CHECKING:  # a recommendation imports no pandas
    import pandas as pd


class Answer(Strict):
    """An answer: a strict record with a headline and a table."""

    def headline(self) -> str:
        """The answer in one line."""
        raise NotImplementedError

    def to_frame(self) -> "pd.DataFrame":
        """The answer as a table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline()}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.headline())}</p>\n{self.to_frame().to_html(index=False)}"
