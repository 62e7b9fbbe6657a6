"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probekit.analysis import Result
from probekit.errors import AnalysisError, UsageError


@dataclass
class Run:
    """What a run came to: its directory, its status (`done`, `failed`, `interrupted`), the results and the failures."""

    path: Path
    status: str = "running"
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def report_path(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    @property
    def result(self) -> Result:
        """The result, where there is one analysis. Raises AnalysisError with its sentence if it failed."""
        for name, sentence in self.failures.items():
            raise AnalysisError(f"{name}: {sentence}")
        if len(self.results) != 1:
            raise UsageError(
                f"The run has {len(self.results)} results ({', '.join(self.results)}); choose one of `results`."
            )
        return next(iter(self.results.values()))

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit run --json` prints."""
        analyses: dict[str, Any] = {
            name: {"status": "done", "metrics": result.metrics} for name, result in self.results.items()
        }
        analyses |= {name: {"status": "failed", "error": text, "metrics": {}} for name, text in self.failures.items()}
        return {"run": str(self.path), "report": str(self.report_path), "status": self.status, "analyses": analyses}
