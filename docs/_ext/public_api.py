"""The directive `public-api`: signatures and docstrings of names that `probekit` exports.

    ```{public-api} load
    ```

probekit's docstrings are plain prose with Markdown's backticks and indented formulas. They are therefore read by the
Markdown parser of the page they stand on; reStructuredText would take their indentation for errors. With the flag
`:members:` a class is followed by its public methods and properties that have a docstring. The directive's own content
follows the docstring; names that cannot carry one, such as type aliases, are described by it alone.
"""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import probekit


def signature(name: str, value: Any) -> str:
    """`name(arguments)`; the bare name for errors, options models, and what is neither a class nor a function."""
    bare = inspect.isclass(value) and issubclass(value, BaseException | BaseModel)
    if bare or not (inspect.isclass(value) or inspect.isfunction(value)):
        return name
    text = re.sub(r"\((self|cls)(, |(?=\)))", "(", str(inspect.signature(value)))
    # Postponed annotations are strings: show them as they were written. Types go without the modules they live in, and
    # defaults that have no spelling (a function, a factory) without their address.
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)
    text = re.sub(r"= <(?:[^<>]|<[^<>]*>)*>", "= …", text)
    return name + (text.removesuffix(" -> None") if inspect.isclass(value) else text)


def documented_members(owner: type) -> list[tuple[str, Any]]:
    """Public attributes of a class with a docstring, in order of definition, without inherited ones."""
    found = []
    for name, value in vars(owner).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        described = inspect.isfunction(plain) or isinstance(plain, property | cached_property)
        if described and not name.startswith("_") and inspect.getdoc(plain):
            found.append((name, plain))
    return found


class PublicApi(SphinxDirective):
    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"members": directives.flag}
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        try:
            value = getattr(probekit, name)
        except AttributeError as error:
            raise self.error(f"probekit exports no {name!r}") from error
        entries = [self._entry(f"probekit.{name}", value, self.content)]
        if "members" in self.options and inspect.isclass(value):
            entries += [self._entry(f"{name}.{member}", entry) for member, entry in documented_members(value)]
        return entries

    def _entry(self, name: str, value: Any, content: StringList | None = None) -> nodes.definition_list:
        described = inspect.isclass(value) or inspect.isfunction(value) or isinstance(value, property | cached_property)
        # An exported constant or alias would otherwise be shown with the docstring of its type.
        text = (inspect.getdoc(value) or "") if described else ""
        definition = nodes.definition()
        self.state.nested_parse(StringList(text.splitlines(), source=name), self.content_offset, definition)
        if content:
            self.state.nested_parse(content, self.content_offset, definition)
        term = nodes.term("", "", nodes.literal(text=signature(name, value)), ids=[nodes.make_id(name)])
        return nodes.definition_list("", nodes.definition_list_item("", term, definition))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("public-api", PublicApi)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
