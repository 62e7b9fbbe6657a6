"""The check of a report: hostile tokens, saved, read back, drawn, and none of them out of its place."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from probekit.analysis import Context, Result
from probekit.report import Document, Page, render_html
from probekit.testing.case import Case
from probekit.testing.outcome import CannotJudgeError
from probekit.testing.tiny import tiny_subject

# Parts of the hostile tokens that no report may hold as they are: markup nowhere, ...
MARKUP = ("<script>hostile", "<img src=x", "<!--<script>", "\x00", "\ud800")
# ... and what is invisible, or ends an attribute, not outside the data of charts, which are no markup.
UNSEEN = ("\u202egnp", "\u2066isolated", "zero\u200bwidth", "' onfocus='")
_CHART_DATA = re.compile(r'<script[^>]*type="application/json"[^>]*>.*?</script>', re.DOTALL)


def draws_hostile_tokens(case: Case) -> Iterator[str]:
    """What goes wrong between a result with hostile tokens and its place in a report."""
    with _read_back(case, case.run(tiny_subject(hostile=True)).result) as saved:
        yield from _draws(case, saved)


def _draws(case: Case, saved: Result) -> Iterator[str]:
    before = case.encode(saved)
    page = _drawn(case, saved)
    if case.encode(saved) != before:
        yield "report() changes the result; draw from copies."
    again = _drawn(case, copy.deepcopy(saved))
    document = _as_json(case, page)
    if _as_json(case, again) != document:
        yield "report() draws two different pages from the same result; compute what is random in run()."
    try:
        read = Page.from_json(json.loads(document))
        html = render_html(Document(title=str(case.analysis.name), question="?", pages=[(case.analysis.name, read)]))
    except Exception as error:
        yield f"The page cannot be rendered: {case.described(error)}"
        return
    if _as_json(case, read) != document:
        yield "The page is another one after it was written as JSON and read back; add blocks by the page's methods."
    outside = _CHART_DATA.sub("", html)
    for text in [part for part in MARKUP if part in html] + [part for part in UNSEEN if part in outside]:
        yield f"The hostile token with {text!a} stands in the report as it is; add text by the page's methods."


@contextmanager
def _read_back(case: Case, result: Result) -> Iterator[Result]:
    """The result as `report` gets it, from disk, where it lies so long. Raises CannotJudgeError if it cannot be saved,
    or not be read.
    """
    files = case.encode(result)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            place = Path(folder) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        try:
            saved = Result.read(Path(folder))
        except Exception as error:
            raise CannotJudgeError(f"The saved result cannot be read: {case.described(error)}") from None
        saved.seconds = dict(result.seconds)
        yield saved


def _drawn(case: Case, saved: Result) -> Page:
    page = Page(str(case.analysis.name))
    try:
        case.analysis(case.options, Context()).report(saved, page)
    except (Exception, SystemExit) as error:
        raise CannotJudgeError(f"report() raised {case.described(error)}") from None
    return page


def _as_json(case: Case, page: Page) -> str:
    try:
        return json.dumps(page.to_json(), allow_nan=False)
    except Exception as error:
        raise CannotJudgeError(f"The page cannot be written as JSON: {case.described(error)}") from None
