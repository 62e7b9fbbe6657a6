"""Blocks with what their templates need beside their own data."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from probekit.report.characters import plain, visible, visible_pieces
from probekit.report.charts import CHARTS, Data, chart_of
from probekit.report.charts.series import LEVELS
from probekit.report.figures import Cell, column, figure, is_numeric
from probekit.report.frames import frame_document
from probekit.report.pictures import SVG
from probekit.report.tokens import MARKS

# What would end a script, and what a reader of the page's source would not see: controls, directions, joiners, tags.
_UNSEEN_RANGES = ((0x7F, 0x9F), (0xAD, 0xAD), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF))
_UNSEEN = [point for low, high in (*_UNSEEN_RANGES, (0xE0000, 0xE007F)) for point in range(low, high + 1)]
_JSON_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&"} | {
    point: json.dumps(chr(point))[1:-1] for point in _UNSEEN
}
# Of a trajectory's steps, printed below the slider.
MOST_ROWS = 48
MOST_TOKENS_IN_ROWS = 4_000


def view(block: dict[str, Any], anchor: str, file: str) -> dict[str, Any]:
    """The block with an `anchor` of its own, and the name of the `file` that it is saved as if it is a chart."""
    shown = {**block, "anchor": anchor}
    kind = block["type"]
    if kind == "tokens":
        return shown | _tokens_view(block["rows"], block)
    if kind == "trajectory":
        return shown | _trajectory_view(block)
    if kind == "table":
        return shown | {"table": _table_view(block["columns"], block["rows"])}
    if kind == "image":
        return shown | {"file": file} | _image_view(block)
    if kind == "frame":
        return shown | {"document": frame_document(block["html"])}
    if kind in CHARTS:
        return shown | {"file": file} | _chart_view(block)
    return shown


def script_json(data: object) -> str:
    """JSON that cannot end its script element, whatever is in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_JSON_ESCAPES)


def _chart_view(block: dict[str, Any]) -> dict[str, Any]:
    chart = chart_of(block)
    embedded = {
        "spec": chart.spec,
        "data": None if chart.data is None or chart.path else chart.data.thinned(chart.stride).embedded(),
        "path": chart.path,
        "keyed": bool(chart.key or chart.scale),
        "colours": [entry.colour for entry in chart.key],
        "labels": chart.labels,
    }
    table = chart.table
    return {
        "chart": chart,
        "spec_json": None if chart.spec is None else Markup(script_json(embedded)),
        "table": table and _table_view(table.columns, table.rows, table.row_headers),
        "thinned": table.thinned if table else "",
        "saved_as": ["csv", "json", "svg", "png"] if chart.data else ["svg", "png"],
    }


def _image_view(block: dict[str, Any]) -> dict[str, Any]:
    data = [Data.of_table(table["columns"], table["rows"]) for table in block["tables"]]
    return {
        "data_json": Markup(script_json([table.embedded() for table in data])),
        "saved_as": [*(["csv", "json"] if data else []), *(["svg"] if block["mime"] == SVG else []), "png"],
        "source": f"data:{block['mime']};base64,{block['data']}",
        "width": max(1, round(block["size"][0])),
        "height": max(1, round(block["size"][1])),
        "tables": [table | {"table": _table_view(table["columns"], table["rows"])} for table in block["tables"]],
    }


def _table_view(columns: list[str], rows: list[list[Cell]], row_headers: bool = False) -> dict[str, Any]:
    by_column = [[row[index] for row in rows] for index in range(len(columns))]
    texts = [column(values) for values in by_column]
    return {
        "columns": columns,
        "rows": [[cells[index] for cells in texts] for index in range(len(rows))],
        "numeric": [is_numeric(values) for values in by_column],
        "row_headers": row_headers,
    }


def _tokens_view(rows: Sequence[Mapping[str, Any]], block: Mapping[str, Any]) -> dict[str, Any]:
    lengths = {len(row["tokens"]) for row in rows}
    automatic = len(rows) > 1 and len(lengths) == 1 and lengths != {0}
    aligned = block.get("align")
    return {
        "aligned": automatic if aligned is None else aligned,
        "rows": [_row_view(row, block.get("marks") or {}) for row in rows],
        "has_notes": any(row["note"] for row in rows),
        "has_labels": any(row["label"] for row in rows),
        "key": _key([token for row in rows for token in row["tokens"]], block),
    }


def _key(tokens: Sequence[Mapping[str, Any]], block: Mapping[str, Any]) -> dict[str, Any]:
    """What the colours and marks of these tokens mean: the author's words for a mark, or else its own."""
    words = block.get("marks") or {}
    used = [mark for mark in MARKS if any(token.get("mark") == mark for token in tokens)]
    return {
        "marks": [(mark, words.get(mark, mark)) for mark in used],
        "valued": any("value" in token for token in tokens),
        "legend": block["legend"],
    }


def _trajectory_view(block: dict[str, Any]) -> dict[str, Any]:
    """The rows at the last step, which stand in the page as they are; all steps for the slider; and, of the first
    series, evenly spaced steps as rows.
    """
    words = block.get("marks") or {}
    vocabulary, series = block["vocabulary"], block["series"]

    def spelled(row: Mapping[str, Any], label: str) -> dict[str, Any]:
        return {"label": label, "tokens": [vocabulary[index] for index in row["tokens"]], "note": row["note"]}

    reference = block["reference"]
    above = [reference] if reference else []
    last = [spelled(entry["rows"][-1], entry["name"]) for entry in series]
    shown = [_token_view(token, words) for token in vocabulary]
    steps = max((entry["rows"] for entry in series), key=len)
    embedded = {
        "vocabulary": [[token["pieces"], token["classes"], token["hover"], token["mark"]] for token in shown],
        "steps": [plain(row["label"]) for row in steps],
        "series": [
            {"rows": [row["tokens"] for row in entry["rows"]], "notes": [plain(row["note"]) for row in entry["rows"]]}
            for entry in series
        ],
    }
    first = series[0]["rows"]
    most = max(2, min(MOST_ROWS, MOST_TOKENS_IN_ROWS // max(1, len(first[-1]["tokens"]))))
    kept = [*range(0, len(first) - 1, -(-len(first) // most)), len(first) - 1]
    spread = [spelled(first[index], first[index]["label"]) for index in kept]
    return {
        "view": {**_tokens_view([*above, *last], {**block, "align": True}), "has_labels": True, "has_notes": True},
        "spread": _tokens_view(spread, {**block, "align": None}) if len(spread) > 1 else None,
        "spread_of": ", ".join(
            [
                *([series[0]["name"]] if len(series) > 1 else []),
                f"{len(spread)} of {len(first)} steps" if len(spread) < len(first) else f"{len(first)} steps",
            ]
        ),
        "steps": steps,
        "above": len(above),
        "key": _key([*vocabulary, *(token for row in above for token in row["tokens"])], block),
        "steps_json": Markup(script_json(embedded)),
    }


def _row_view(row: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    tokens = [_token_view(token, words) for token in row["tokens"]]
    # One tab stop a row, its first token with something to say; the arrow keys move on from there.
    entered = False
    for token in tokens:
        token["tab"] = None if not token["hover"] else (-1 if entered else 0)
        entered = entered or bool(token["hover"])
    return {"label": row["label"], "note": row["note"], "tokens": tokens}


def _token_view(token: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    mark = token.get("mark", "")
    return {
        "pieces": visible_pieces(token["text"]),
        "classes": " ".join(_token_classes(token)),
        # Read aloud before the token, where the eye sees it by its colour.
        "mark": plain(words.get(mark, mark)) if mark == "wrong" else "",
        "hover": _hover_text(token, words),
    }


def _token_classes(token: Mapping[str, Any]) -> list[str]:
    classes = ["token"]
    if "mark" in token:
        classes.append(token["mark"])
    if "value" in token:
        classes.append(f"level-{min(int(token['value'] * LEVELS), LEVELS - 1)}")
    return classes


def _hover_text(token: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """The author's text for a token, else what its colour and mark say in words; empty where there is neither."""
    if token.get("title"):
        return plain(token["title"])
    said = [plain(words.get(token["mark"], token["mark"]))] if "mark" in token else []
    said += [f"value {figure(float(token['value']))}"] if "value" in token else []
    return f"{visible(token['text'])}\n{', '.join(said)}" if said else ""
