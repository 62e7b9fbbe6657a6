"""The pages that several analyses of one run have in common, drawn from their saved results."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from probekit.analysis import JointReport, Result
from probekit.report import Page
from probekit.runs.containment import quietly
from probekit.runs.directory import RunDirectory
from probekit.runs.keeping import explain
from probekit.runs.outcome import Run

JOINT_FILE = "joint.json"
TRACEBACK_FILE = "joint-traceback.txt"


def compare_jointly(
    directory: RunDirectory, manifest: dict[str, Any], analyses: Mapping[str, type[Any]], outcome: Run
) -> None:
    """Draw each joint report of which at least two analyses are done; `joint.json` holds the pages in order.

    One that raises is a failure of the run under its title: the results are whole, only their comparison is missing.
    """
    pages = []
    manifest["joint"] = {}
    (directory.path / TRACEBACK_FILE).unlink(missing_ok=True)
    for joint, results in comparable(analyses, outcome.results).items():
        page = Page(joint.title)
        try:
            with quietly(joint.title):
                joint.draw(results, page)
        except Exception as error:
            outcome.failures[joint.title] = explain(error)
            manifest["joint"][joint.title] = {"status": "failed", "error": explain(error)}
            directory.write(TRACEBACK_FILE, traceback.format_exc().encode(errors="backslashreplace"))
        else:
            pages.append(page.to_json())
            manifest["joint"][joint.title] = {"status": "done"}
    if pages:
        directory.write_json(JOINT_FILE, {"pages": pages})


def comparable(
    analyses: Mapping[str, type[Any]], results: Mapping[str, Result]
) -> dict[JointReport, dict[str, Result]]:
    """The results of each joint report that at least two analyses have."""
    groups: dict[JointReport, dict[str, Result]] = {}
    for name, analysis in analyses.items():
        if analysis.joint_report is not None and name in results:
            groups.setdefault(analysis.joint_report, {})[name] = results[name]
    return {joint: group for joint, group in groups.items() if len(group) > 1}
