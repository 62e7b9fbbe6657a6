"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import Result
from probekit.errors import AnalysisError, UsageError
from probekit.runs.directory import RunDirectory
from probekit.runs.manifest import read_manifest
from probekit.runs.profiling import PROFILE_FILE

if TYPE_CHECKING:
    import pandas


@dataclass
class Run:
    """What a run came to: its directory, its status, the results and the failures.

    The status is `done`, `failed` or `interrupted`; or `abandoned`, where it could not be carried out or written down.

    `manifest` is what `run.json` says of it: the configuration, the model, the prompts, the versions.
    """

    path: Path
    status: str = "running"
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: where it is, its status, and what it has results of."""
        failed = f"; failed: {', '.join(self.failures)}" if self.failures else ""
        return f"Run({str(self.path)!r}, {self.status}: {', '.join(self.results) or 'no results'}{failed})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the report, in a frame."""
        from probekit.runs.notebook import report_in_frame

        return report_in_frame(self.report_path, repr(self), f"Draw it again with: probekit report {self.path}")

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

    def to_pandas(self) -> pandas.DataFrame:
        """The metrics of all analyses as a pandas.DataFrame, a row each: `analysis`, `metric`, `value`.

        Tables are those of a result: `run.result.to_pandas()`. Raises UsageError if pandas is not installed.
        """
        from probekit.analysis.frames import frame

        columns = ["analysis", "metric", "value"]
        rows = [
            dict(zip(columns, (name, metric, value), strict=True))
            for name, result in self.results.items()
            for metric, value in result.metrics.items()
        ]
        return frame(rows, columns)

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit run --json` prints."""
        analyses: dict[str, Any] = {
            name: {"status": "done", "metrics": result.metrics} for name, result in self.results.items()
        }
        analyses |= {name: {"status": "failed", "error": text, "metrics": {}} for name, text in self.failures.items()}
        document = {"run": str(self.path), "report": str(self.report_path), "status": self.status, "analyses": analyses}
        profile = self.path / PROFILE_FILE
        return {**document, "profile": str(profile)} if profile.is_file() else document


def read_run(path: str | Path) -> Run:
    """A saved run with the results of those of its analyses that are done.

    Raises UsageError with one sentence if there is none at this path, or if it is damaged or of another version.
    """
    path = Path(path)
    directory = RunDirectory.open(path)
    manifest = read_manifest(directory)
    entries = {**manifest["analyses"], **manifest.get("joint", {})}
    done = [name for name, entry in manifest["analyses"].items() if entry["status"] == "done"]
    failures = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
    outcome = Run(path, manifest["status"], failures=failures, manifest=manifest)
    outcome.results = {name: directory.result(name) for name in done}
    return outcome
