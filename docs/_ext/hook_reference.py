"""The directive `hook-reference`: every hook that a plugin may implement, with an implementation that runs.

    ```{hook-reference}
    ```

Each hook of `probekit.hookspecs` is a section: its signature, its docstring (read as Markdown, as `public_api` reads
docstrings), which results count, and the implementations of it in `plugins/examples`, found in their source. A hook
without a docstring or without an example is an error, so that the page cannot fall behind the code.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pluggy
from docutils import nodes
from docutils.statemachine import StringList
from public_api import signature
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from probekit import hookspecs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "plugins" / "examples"


class Hook(NamedTuple):
    """A hook as `probekit.hookspecs` declares it."""

    name: str
    specification: Callable[..., Any]
    first_result: bool


class Example(NamedTuple):
    """An implementation of a hook: the file it stands in, and its source with its decorators."""

    path: Path
    source: str


def hooks() -> list[Hook]:
    """Every hook, in order of definition."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    found = []
    for name, value in vars(hookspecs).items():
        options = manager.parse_hookspec_opts(hookspecs, name)
        if options is not None:
            found.append(Hook(name, value, options["firstresult"]))
    return found


def examples(hook: str) -> list[Example]:
    """The implementations of a hook in the packages under plugins/examples."""
    found = []
    for path in sorted(EXAMPLES.glob("*/probekit_*/**/*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == hook and any(map(_marks, node.decorator_list)):
                # `lineno` is that of `def`; the decorators stand before it.
                lines = text.splitlines()[node.decorator_list[0].lineno - 1 : node.end_lineno]
                found.append(Example(path, inspect.cleandoc("\n".join(lines))))
    return found


def _marks(decorator: ast.expr) -> bool:
    """Whether a decorator is `hookimpl`, by whatever name of its module and with or without arguments."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] == "hookimpl"


def which_results_count(hook: Hook) -> str:
    """One sentence: what becomes of what implementations return."""
    if hook.first_result:
        return "Plugins are asked one after another; the first result that is not None counts."
    if inspect.signature(hook.specification).return_annotation in (None, "None"):
        return "Every plugin is called; nothing is returned."
    return "Every plugin is called, and all results count."


class HookReference(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [self._section(hook) for hook in hooks()]

    def _section(self, hook: Hook) -> nodes.section:
        documentation, found = inspect.getdoc(hook.specification), examples(hook.name)
        if not documentation:
            raise self.error(f"the hook {hook.name} has no docstring")
        if not found:
            raise self.error(f"the hook {hook.name} has no example in {EXAMPLES.relative_to(ROOT)}")
        section = nodes.section("", nodes.title("", "", nodes.literal(text=hook.name)), names=[hook.name])
        # As a link target: [](#probekit_analyses) on any page.
        self.state.document.note_explicit_target(section)
        section += nodes.literal_block("", signature(hook.name, hook.specification), language="text")
        self.state.nested_parse(StringList(documentation.splitlines(), source=hook.name), self.content_offset, section)
        section += nodes.paragraph(text=which_results_count(hook))
        for example in found:
            self.env.note_dependency(str(example.path))
            path = example.path.relative_to(ROOT).as_posix()
            section += nodes.paragraph("", "", nodes.Text("From "), nodes.literal(text=path), nodes.Text(":"))
            section += nodes.literal_block("", example.source, language="python")
        return section


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("hook-reference", HookReference)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
