"""The same page of several runs as one: their curves in one chart, their tokens over steps below one slider, their
heatmaps and other tokens one under the other.

Nothing here knows an analysis. Blocks belong together when they stand under the same heading with the same caption
(and axes) in the pages of the same analysis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from probekit.report import Page
from probekit.report.blocks import Block
from probekit.report.tokens import TokenRow, row_from_json, trajectory_rows
from probekit.runs.comparison.curves import REPETITION, in_every_run, overlay_curves, own_name

MOST_OPEN_ROWS = 12
MOST_OPEN_HEADINGS = 2

Key = tuple[object, ...]


def overlay(pages: Sequence[Page], labels: Sequence[str], target: Page) -> None:
    """Append to `target` what at least two of the pages have in common, under its heading, and say what is left out."""
    matched: dict[Key, dict[int, Block]] = {}
    for side, page in enumerate(pages):
        for key, block in _keyed(page):
            matched.setdefault(key, {})[side] = block
    shared = {key: blocks for key, blocks in matched.items() if len(blocks) > 1}
    headings = list(dict.fromkeys(str(key[0]) for key in shared))
    many = sum(map(bool, headings)) > MOST_OPEN_HEADINGS
    for heading in headings:
        if heading:
            target.heading(heading)
        for kind, draw in _DRAW.items():
            for key, blocks in shared.items():
                if key[:2] == (heading, kind):
                    draw(_folded(blocks) if many else blocks, labels, target)
    alone = [" – ".join(filter(None, map(str, (key[0], key[2])))) for key in matched if key not in shared]
    if alone:
        target.note(f"Only one run has these, so they are in its own report: {'; '.join(dict.fromkeys(alone))}.")


def common_prose(pages: Sequence[Page]) -> list[str]:
    """The paragraphs before the first heading that all pages share: what the figures mean, not what they are."""
    by_page = [_opening_paragraphs(page) for page in pages]
    return [paragraph for paragraph in by_page[0] if all(paragraph in others for others in by_page[1:])]


def _opening_paragraphs(page: Page) -> list[str]:
    paragraphs: list[str] = []
    for block in page.blocks:
        if block["type"] == "heading":
            break
        if block["type"] == "prose":
            paragraphs += [part.strip() for part in re.split(r"\n\s*\n", block["text"])]
    return list(dict.fromkeys(filter(None, paragraphs)))


def _keyed(page: Page) -> Iterator[tuple[Key, Block]]:
    """The blocks that can be compared, each with what it must share with another: heading, kind, caption, axes, and
    which of several such blocks it is.
    """
    heading = ""
    seen: dict[Key, int] = {}
    for block in page.blocks:
        if block["type"] == "heading":
            heading = block["text"]
        kind, axes = _kind(block)
        if kind:
            key = (heading, kind, REPETITION.sub("", block["caption"]), *axes)
            seen[key] = seen.get(key, 0) + 1
            yield (*key, seen[key]), block


def _kind(block: Block) -> tuple[str, Key]:
    if block["type"] in ("lines", "band"):
        return "curves", (block["x"], block["y"])
    if block["type"] == "heatmap":
        return "heatmap", (tuple(block["x_labels"]), tuple(block["y_labels"]), block["value"])
    return (block["type"], ()) if block["type"] in ("tokens", "trajectory") else ("", ())


def _folded(blocks: Mapping[int, Block]) -> dict[int, Block]:
    return {side: block | ({"collapsed": True} if "collapsed" in block else {}) for side, block in blocks.items()}


def _heatmaps(blocks: Mapping[int, Block], labels: Sequence[str], target: Page) -> None:
    """One under the other, on one colour scale."""
    extents = [block["domain"] or _extent(block) for block in blocks.values()]
    ends = [end for extent in extents for end in extent]
    domain = [min(ends), max(ends)] if ends and min(ends) < max(ends) else None
    for side, block in blocks.items():
        target.blocks.append(block | {"caption": _captioned(block, labels[side]), "domain": domain})


def _extent(block: Block) -> list[float]:
    return [value for row in block["values"] for value in row if value is not None]


def _tokens(blocks: Mapping[int, Block], labels: Sequence[str], target: Page) -> None:
    """One under the other, folded where there are many rows."""
    for side, block in blocks.items():
        folded = block["collapsed"] or len(block.get("rows", ())) > MOST_OPEN_ROWS
        target.blocks.append(block | {"caption": _captioned(block, labels[side]), "collapsed": folded})


def _trajectories(blocks: Mapping[int, Block], labels: Sequence[str], target: Page) -> None:
    """Below one slider where the steps and the row on top are the same in all of them, else one under the other."""
    rows = {side: trajectory_rows(block) for side, block in blocks.items()}
    steps = [[row.label for row in longest] for series in rows.values() for longest in [max(series.values(), key=len)]]
    first = next(iter(blocks.values()))
    if any(other != steps[0] for other in steps) or any(_frame(other) != _frame(first) for other in blocks.values()):
        _tokens(blocks, labels, target)
        return
    together: dict[str, Sequence[TokenRow]] = {}
    for name in dict.fromkeys(name for series in rows.values() for name in series):
        having = {labels[side]: series[name] for side, series in rows.items() if name in series}
        if len(having) == len(labels) and all(other == next(iter(having.values())) for other in having.values()):
            together[in_every_run(name)] = next(iter(having.values()))
        else:
            together |= {own_name(name, label): series for label, series in having.items()}
    target.trajectory(
        together,
        reference=None if first["reference"] is None else row_from_json(first["reference"]),
        caption=first["caption"],
        legend=first["legend"],
        collapsed=all(block["collapsed"] for block in blocks.values()),
        marks=first["marks"],
    )


def _frame(block: Block) -> list[object]:
    """What one slider over several trajectories can have once."""
    return [block[part] for part in ("reference", "legend", "marks", "thinned")]


def _captioned(block: Block, label: str) -> str:
    return f"{label}: {block['caption']}" if block["caption"] else label


# In the order in which they are shown.
_DRAW: dict[str, Callable[[Mapping[int, Block], Sequence[str], Page], None]] = {
    "curves": overlay_curves,
    "heatmap": _heatmaps,
    "trajectory": _trajectories,
    "tokens": _tokens,
}
