"""The directive `options-table`: an analysis's options, from the pydantic model that defines them.

    ```{options-table} gradient-inverter
    ```

The argument is the name of an analysis that an entry point in the group `probekit` provides. The table is the
model's own fields, so that the page cannot disagree with the code.
"""

from __future__ import annotations

import json
import re
import types
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

COLUMNS = ("Option", "Type", "Default", "Meaning")
# Bounds as pydantic keeps them (annotated-types), in words.
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


class OptionRow(NamedTuple):
    """One option. Text between backticks is shown as code."""

    name: str
    type: str
    default: str
    meaning: str


def options_table(options_model: type[BaseModel]) -> list[OptionRow]:
    """The fields of a pydantic model as rows, in their order of definition.

    Descriptions are the fields' own (`Field(description=…)`); a field without one is an error, because its row would
    say nothing.
    """
    rows = []
    for name, field in options_model.model_fields.items():
        if not field.description:
            raise ValueError(f"the option {name!r} of {options_model.__name__} has no description to show")
        rows.append(OptionRow(f"`{field.alias or name}`", _type(field), _default(field), _one_line(field.description)))
    return rows


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(constraint, bound)}"
        for constraint in field.metadata
        for bound, sign in BOUNDS.items()
        if getattr(constraint, bound, None) is not None
    ]
    return ", ".join([_annotation(field.annotation), *bounds])


def _annotation(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "none"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(f"`{argument}`" for argument in arguments)
    if origin is Annotated:
        return _annotation(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(_annotation(argument) for argument in arguments)
    if origin is not None:
        inside = ", ".join(_annotation(argument) for argument in arguments if argument is not Ellipsis)
        return f"{origin.__name__} of {inside}"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, tuple | set | frozenset):
        value = list(value)
    return f"`{value if isinstance(value, str | Path) and str(value) else json.dumps(value, default=str)}`"


def find_options_model(analysis_name: str) -> type[BaseModel]:
    """The options model of a named analysis, found as probekit finds it: by entry point and hook."""
    found: dict[str, type[BaseModel]] = {}
    for entry_point in entry_points(group="probekit"):
        hook = getattr(entry_point.load(), "probekit_analyses", None)
        found |= {analysis.name: analysis.options_model for analysis in hook()} if hook else {}
    if analysis_name not in found:
        raise LookupError(f"no analysis is named {analysis_name!r}; there are: {', '.join(sorted(found)) or 'none'}")
    return found[analysis_name]


def _inline(text: str) -> list[nodes.Node]:
    """Text with `code` between backticks, as nodes."""
    parts = re.split(r"`([^`]+)`", text)
    return [nodes.literal(text=part) if index % 2 else nodes.Text(part) for index, part in enumerate(parts) if part]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> nodes.table:
    """A docutils table of one-line cells."""
    group = nodes.tgroup(cols=len(header))
    group.extend(nodes.colspec(colwidth=100 // len(header)) for _ in header)
    head, body = nodes.thead(), nodes.tbody()
    for section, cells in [(head, header), *((body, row) for row in rows)]:
        line = nodes.row()
        line.extend(nodes.entry("", nodes.paragraph("", "", *_inline(cell))) for cell in cells)
        section.append(line)
    group.extend([head, body])
    return nodes.table("", group)


class OptionsTable(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        try:
            rows = options_table(find_options_model(self.arguments[0]))
        except (LookupError, ValueError) as error:
            raise self.error(str(error)) from error
        if not rows:
            return [nodes.paragraph(text="This analysis has no options.")]
        return [table(COLUMNS, list(rows))]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("options-table", OptionsTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
