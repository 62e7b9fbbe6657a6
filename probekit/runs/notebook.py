"""What a notebook shows of a run, a comparison or a study: its report, in a frame."""

from __future__ import annotations

from pathlib import Path

from probekit.analysis.notebook import escaped, framed


def report_in_frame(report: Path, title: str, remedy: str) -> str:
    """The report as HTML for a notebook; where it cannot be read, a sentence that says so, and what to do."""
    try:
        html = report.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # missing, or not the text that was written
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        text = f"{title}: the report '{report}' cannot be read ({reason}). {remedy}"
        return f"<p>{escaped(text)}</p>"
    return framed(html, title)
