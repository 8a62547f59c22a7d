"""What is said of a planned run: what its configuration means, which rules it breaks, and the opinion."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hyperp.analysis.answers import Answer
from hyperp.analysis.registry.opinion import Opinion
from hyperp.analysis.registry.rules import Finding
from hyperp.analysis.registry.run_config import RunConfig
from hyperp.validation import Strict

if TYPE_CHECKING:
    import pandas as pd


class Diagnosis(Answer, Strict):
    """What is said of a configuration.

    Attributes:
        path: its file.
        config: what it means.
        findings: the rules that it breaks.
        opinion: what published laws say of it; None where its optimizer or all its sizes are unknown.
    """

    path: str
    config: RunConfig
    findings: list[Finding]
    opinion: Opinion | None

    def headline(self) -> str:
        """How many rules are broken, and which."""
        if not self.findings:
            return f"{self.path}: no rule that is known here is broken"
        broken = ", ".join(finding.rule for finding in self.findings)
        return f"{self.path}: {len(self.findings)} found: {broken}"

    def notes(self) -> Sequence[str]:
        """What the published laws say together."""
        return [] if self.opinion is None else self.opinion.words

    def to_frame(self) -> "pd.DataFrame":
        """A row for each finding."""
        import pandas as pd

        rows = [finding.model_dump() for finding in self.findings]
        return pd.DataFrame(rows, columns=["rule", "message", "source"])
