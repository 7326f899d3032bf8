"""A sweep as its pictures see it."""

from dataclasses import dataclass

from eagleray.report.analysis import Analysis
from eagleray.report.trials import Comparison
from eagleray.runs.record import Record


@dataclass(frozen=True)
class Swept:
    """A sweep with its runs and their analysis."""

    record: Record
    comparison: Comparison
    analysis: Analysis

    def about(self, *facts: str) -> str:
        """Say which sweep a picture shows, and what it found best."""
        best, question = self.analysis.winner, str(self.record.file().get("question") or "")
        found = [] if best is None else [f"best: {best.name}, {self.analysis.metric} {best.measured}"]
        name = f"{self.record.experiment}/{self.record.directory.name}"
        return f"{name}: {question} {'; '.join([*facts, *found])}".replace("  ", " ")
