"""The plugin manager: finds plugins by entry point, checks them, and calls their hooks one by one.

A plugin that cannot be imported, that ends the interpreter, that implements a hook which does not exist, or that
takes a name which is already taken is recorded with its error; everything else still works.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from probekit import hookspecs
from probekit.errors import PluginError, ProbekitError, UsageError, nearest, words

BLOCK_VARIABLE = "PROBEKIT_BLOCK_PLUGINS"


@dataclass
class PluginRecord:
    """One entry point: where it comes from, whether it loaded, and what it provides."""

    name: str
    distribution: str
    version: str
    module: str = ""
    status: Literal["loaded", "failed", "blocked"] = "loaded"
    error: str = ""
    analyses: list[type[Any]] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)


class Plugins:
    """The plugins of one process or one run. Nothing is global: tests and runs make their own."""

    def __init__(self, block: Iterable[str] = (), points: Iterable[EntryPoint] | None = None) -> None:
        """Load every entry point of the group `probekit` but the blocked ones.

        `block` are entry point names, joined by those in the environment variable `PROBEKIT_BLOCK_PLUGINS` (separated
        by commas). `points` replaces the installed entry points (for tests).
        """
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.records: list[PluginRecord] = []
        blocked = {*block, *filter(None, (part.strip() for part in os.environ.get(BLOCK_VARIABLE, "").split(",")))}
        found = entry_points(group=hookspecs.PROJECT) if points is None else points
        for point in sorted(set(found), key=lambda point: (not _is_bundled(point), point.name, point.value)):
            self._load(point, blocked)

    def _load(self, point: EntryPoint, blocked: set[str]) -> None:
        record = PluginRecord(point.name, *_origin(point))
        self.records.append(record)
        if point.name in blocked:
            record.status = "blocked"
            return
        try:
            plugin = point.load()
        except KeyboardInterrupt:
            named = f"The plugin '{point.name}' was being imported; --block-plugin {point.name} leaves it out."
            raise KeyboardInterrupt(named) from None
        except BaseException as error:  # a plugin may even call sys.exit() at import
            self._fail(record, f"did not import: {_describe(error)}")
        else:
            record.module = point.module
            self.register(plugin, record)

    def register(self, plugin: object, record: PluginRecord | None = None) -> PluginRecord:
        """Add a plugin object that is already imported; returns its record, with the error if it was refused."""
        if record is None:
            name = getattr(plugin, "__name__", type(plugin).__name__)
            record = PluginRecord(name, "", "")
            self.records.append(record)
        if self._manager.has_plugin(record.name):
            return self._fail(record, f"the plugin name '{record.name}' is already taken")
        if self._manager.is_registered(plugin):
            return self._fail(record, f"is the plugin '{self._manager.get_name(plugin)}' a second time")
        try:
            self._check_names(plugin)
            self._manager.register(plugin, record.name)
            self._manager.check_pending()
            record.analyses = self._analyses_of(plugin)
            record.hooks = sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            self._fail(record, _describe(error))
        return record

    @staticmethod
    def _fail(record: PluginRecord, error: str) -> PluginRecord:
        record.status, record.error, record.analyses, record.hooks = "failed", " ".join(error.split()), [], []
        return record

    def _check_names(self, plugin: object) -> None:
        """A function named `probekit_…` without its marker, or a marked one that is no hook, is an error, not a
        silence.
        """
        known = {name for name in vars(hookspecs) if name.startswith("probekit_")}
        for name in dir(plugin):
            function = getattr(plugin, name, None)
            marker = getattr(function, f"{hookspecs.PROJECT}_impl", None)
            if not callable(function) or not (isinstance(marker, Mapping) or name.startswith("probekit_")):
                continue
            hook = (marker.get("specname") if isinstance(marker, Mapping) else None) or name
            if hook not in known:
                raise PluginError(f"implements '{hook}', which is not a hook.{nearest(hook, known)}")
            if not isinstance(marker, Mapping):
                raise PluginError(f"defines '{name}' without @probekit.hookimpl, so it would never be called")
            if marker.get("wrapper") or marker.get("hookwrapper"):
                raise PluginError(f"implements '{name}' as a wrapper; expected a plain function")

    def _analyses_of(self, plugin: object) -> list[type[Any]]:
        analyses: list[type[Any]] = []
        for implementation in self._manager.hook.probekit_analyses.get_hookimpls():
            if implementation.plugin is plugin:
                analyses += self._call(implementation, "probekit_analyses", {})
        taken = self.analyses()
        for analysis in analyses:
            name = getattr(analysis, "name", None)
            parts = ("options_model", "summary", "run", "report")
            if not inspect.isclass(analysis) or not name or not all(hasattr(analysis, part) for part in parts):
                raise PluginError(f"provides {analysis!r}, which is no subclass of probekit.Analysis with a name")
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise PluginError(f"provides an analysis named {name!r}; a name has letters, digits and hyphens only")
            if name in taken:
                raise PluginError(f"provides an analysis named '{name}', a name that is already taken")
            taken[name] = analysis
        return analyses

    def analyses(self) -> dict[str, type[Any]]:
        """Every analysis that is there, by name."""
        return {analysis.name: analysis for record in self.records for analysis in record.analyses}

    def analysis(self, name: str) -> type[Any]:
        """The analysis of that name.

        Raises PluginError if a plugin of that name did not load, UsageError if it is blocked or unknown.
        """
        analyses = self.analyses()
        if name in analyses:
            return analyses[name]
        for record in self.records:
            if record.name == name and record.status == "failed":
                raise PluginError(f"The plugin '{name}' did not load: it {record.error}.".replace("..", "."))
            if record.name == name and record.status == "blocked":
                raise UsageError(f"The plugin '{name}' is blocked; take it out of --block-plugin and {BLOCK_VARIABLE}.")
        known = ", ".join(sorted(analyses)) or "none"
        failed = ", ".join(record.name for record in self.records if record.status == "failed")
        unknown = f" What did not load is shown by `probekit plugins`: {failed}." if failed else ""
        raise UsageError(f"There is no plugin '{name}'; there are: {known}.{nearest(name, analyses)}{unknown}")

    def collect(self, hook: str, **arguments: Any) -> tuple[list[Any], list[str]]:
        """Call every implementation of a hook: what each returned, and a sentence for each that raised."""
        results, failures = [], []
        for implementation in self._implementations(hook):
            try:
                results.append(self._call(implementation, hook, arguments))
            except ProbekitError as error:
                sentence = " ".join(str(error).split())
                named = f"'{implementation.plugin_name}'" in sentence
                failures.append(sentence if named else f"The plugin '{implementation.plugin_name}': {sentence}")
        return results, failures

    def first(self, hook: str, **arguments: Any) -> Any:
        """The first result of a hook that is not None, or None.

        An implementation that raises ends it: to pass over a plugin's loader or anatomy might change what is found.
        """
        answer = self.answer(hook, **arguments)
        return None if answer is None else answer[1]

    def answer(self, hook: str, **arguments: Any) -> tuple[str, Any] | None:
        """As `first`, with the name of the plugin whose result it is."""
        for implementation in self._implementations(hook):
            result = self._call(implementation, hook, arguments)
            if result is not None:
                return implementation.plugin_name, result
        return None

    def notify(self, hook: str, **arguments: Any) -> list[str]:
        """Tell every implementation of a hook; returns a sentence for each that raised, after calling all of them."""
        return self.collect(hook, **arguments)[1]

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        return list(
            reversed(getattr(self._manager.hook, hook).get_hookimpls())
        )  # last registered first, as pluggy does

    @staticmethod
    def _call(implementation: pluggy.HookImpl, hook: str, arguments: dict[str, Any]) -> Any:
        """Call one. Raises probekit's errors as they are, being sentences, and anything else as a PluginError."""
        try:
            return implementation.function(*(arguments[name] for name in implementation.argnames))
        except (KeyboardInterrupt, ProbekitError):
            raise
        except BaseException as error:
            raise PluginError(
                f"The plugin '{implementation.plugin_name}' failed in {hook} (--block-plugin "
                f"{implementation.plugin_name} leaves it out): {_describe(error)}"
            ) from error


def _origin(point: EntryPoint) -> tuple[str, str]:
    """The distribution's name and version; empty where its metadata is damaged."""
    try:
        return (str(point.dist.name or ""), str(point.dist.version or "")) if point.dist else ("", "")
    except Exception:
        return "", ""


def _is_bundled(point: EntryPoint) -> bool:
    return point.value.startswith("probekit_plugins.")


def _describe(error: BaseException) -> str:
    if isinstance(error, PluginError):
        return str(error)
    text = " ".join(words(error).split())
    return str(PluginError(f"{type(error).__name__}: {text}" if text else type(error).__name__))
