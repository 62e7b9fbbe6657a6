"""A comparison of finished runs: one page, and the same as data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probekit.errors import UsageError
from probekit.files import write_whole
from probekit.report import render_html
from probekit.runs.comparison.differences import Metric, differing, metrics_of, settings
from probekit.runs.comparison.document import draw
from probekit.runs.comparison.sides import Side, read_sides

DEFAULT_NAME = "comparison"


@dataclass(frozen=True)
class Comparison:
    """A comparison that was drawn: `path` is its page, `sides` the runs in order, `analyses` what they share."""

    path: Path
    sides: list[Side]
    analyses: list[str]

    def __repr__(self) -> str:
        """One line: where its page is, which runs it compares, and in what."""
        return f"Comparison({str(self.path)!r}, {' | '.join(self.labels)}: {', '.join(self.analyses)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the page, in a frame."""
        from probekit.runs.notebook import report_in_frame

        return report_in_frame(self.path, repr(self), "Draw it again with `probekit compare`.")

    @property
    def labels(self) -> list[str]:
        """The name that each run has on the page, in order."""
        return [side.label for side in self.sides]

    def metrics(self, analysis: str) -> list[Metric]:
        """The metrics of one analysis, each with its values and differences by the runs' places (0 is the first)."""
        return metrics_of([side.metrics[analysis] for side in self.sides])

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit compare --json` prints. Every table is keyed by the runs' labels."""
        manifests = [side.manifest for side in self.sides]
        return {
            "comparison": str(self.path),
            "runs": [
                {
                    "label": side.label,
                    "run": str(side.path),
                    "status": side.status,
                    "command": side.manifest.get("command"),
                }
                for side in self.sides
            ],
            "differences": {
                "configuration": self._by_label(differing([settings(manifest) for manifest in manifests])),
                "model": self._by_label(differing([manifest.get("model", {}) for manifest in manifests])),
                "versions": self._by_label(differing([manifest.get("versions", {}) for manifest in manifests])),
            },
            "analyses": {
                name: {
                    "findings": {side.label: side.pages[name].findings for side in self.sides},
                    "metrics": {metric.name: self._metric(metric) for metric in self.metrics(name)},
                }
                for name in self.analyses
            },
        }

    def _metric(self, metric: Metric) -> dict[str, Any]:
        differences = {self.labels[number]: asdict(gap) for number, gap in metric.differences.items()}
        return {
            "values": {self.labels[number]: value for number, value in metric.values.items()},
            "differences": differences,
        }

    def _by_label(self, rows: dict[str, dict[int, Any]]) -> dict[str, dict[str, Any]]:
        return {key: {self.labels[number]: value for number, value in values.items()} for key, values in rows.items()}


def compare(runs: Sequence[str | Path], output: str | Path | None = None) -> Comparison:
    """Compare finished runs on one self-contained page, drawn from what their directories hold.

    `output` is an HTML file that must not exist; without it a new `comparison.html` (then `comparison-2.html`, …) is
    made in the current folder. Differences are to the first run. Raises UsageError with a sentence for runs that are
    unfinished, damaged or fewer than two, that share no finished analysis, and for an output that cannot be written.
    """
    paths = [Path(run) for run in runs]
    target = new_page(None if output is None else Path(output))
    sides = read_sides(paths)
    words = ["probekit", "compare", *map(str, paths)]
    return write_comparison(sides, target, shlex.join(words))


def new_page(output: Path | None) -> Path:
    """The file to write: `output`, or a new name in the current folder. Raises UsageError if it exists."""
    if output is None:
        names = (Path(f"{DEFAULT_NAME}{f'-{number}' if number > 1 else ''}.html") for number in range(1, 10**9))
        return next(name for name in names if not name.exists())
    if output.is_dir():
        raise UsageError(
            f"The output '{output}' is a folder; name a file in it, such as '{output / 'comparison.html'}'."
        )
    if output.exists():
        raise UsageError(f"The output '{output}' exists; name another file, or remove it.")
    return output


def write_comparison(sides: list[Side], target: Path, command: str) -> Comparison:
    """Draw the page of these runs. Raises UsageError if they share no analysis, or the page cannot be written."""
    analyses = [name for name in sides[0].pages if all(name in side.pages for side in sides)]
    if not analyses:
        having = "; ".join(f"'{side.path}' has {', '.join(side.pages) or 'none'}" for side in sides)
        raise UsageError(f"The runs share no analysis that all of them finished: {having}.")
    html = render_html(draw(sides, analyses, command))
    try:
        write_whole(target, html.encode(errors="replace"))
    except OSError as error:
        raise UsageError(f"The output '{target}' cannot be written: {error.strerror}.") from None
    return Comparison(target, sides, analyses)
