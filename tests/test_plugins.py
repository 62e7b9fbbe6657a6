"""The plugin manager: what loads, what is refused and why, and that one broken plugin leaves the others alone."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit import Plugins, hookimpl
from probekit.errors import ModelError, PluginError, UsageError

BUNDLED = ["gradient-inverter", "pseudo-inverse"]
ANALYSIS = """
import probekit

class Nice(probekit.Analysis[probekit.Options]):
    "A nice analysis."
    name = "nice"

"""


class Sample(probekit.Analysis[probekit.Options]):
    name = "sample"


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EntryPoint]:
    """A function that writes a module and returns an entry point to it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str, name: str = "third-party", module: str = "plugin_under_test") -> EntryPoint:
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return EntryPoint(name, module, "probekit")

    return make


def bundled() -> list[EntryPoint]:
    return [EntryPoint(name, f"probekit_plugins.{name.replace('-', '_')}", "probekit") for name in BUNDLED]


def record_of(plugins: Plugins, name: str) -> Any:
    [record] = [record for record in plugins.records if record.name == name]
    return record


def plugin_object(**hooks: Any) -> Any:
    return types.SimpleNamespace(__name__="object", **hooks)


# --- what is refused -------------------------------------------------------------------------------------------------

BROKEN = {
    "fails to import": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named"),
    "raises at import": ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    "is no Python": ("def broken(:", "SyntaxError: invalid syntax"),
    "holds a null byte": ("\0", "null bytes"),
    "ends the interpreter at import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "ends the interpreter without a word": ("raise SystemExit", "SystemExit"),
    "recurses at import": ("def f(): f()\nf()", "RecursionError"),
    "raises no Exception": ("class Odd(BaseException): pass\nraise Odd('no')", "Odd: no"),
    "implements a hook that does not exist": (
        "import probekit\n@probekit.hookimpl\ndef probekit_analysis(): return []",
        "implements 'probekit_analysis', which is not a hook. Did you mean 'probekit_analyses'?",
    ),
    "marks a function that is no hook": (
        "import probekit\n@probekit.hookimpl\ndef analyses(): return []",
        "implements 'analyses', which is not a hook.",
    ),
    "misspells the hook's name in its marker": (
        "import probekit\n@probekit.hookimpl(specname='probekit_anatomi')\ndef mine(model): return None",
        "implements 'probekit_anatomi', which is not a hook. Did you mean 'probekit_anatomy'?",
    ),
    "forgets the marker": (
        "def probekit_analyses(): return []",
        "defines 'probekit_analyses' without @probekit.hookimpl, so it would never be called",
    ),
    "forgets the marker of a hook that does not exist": ("def probekit_anything(): ...", "'probekit_anything'"),
    "takes arguments that the hook has not": (
        "import probekit\n@probekit.hookimpl\ndef probekit_anatomy(modell): return None",
        "modell",
    ),
    "wraps a hook": (
        "import probekit\n@probekit.hookimpl(wrapper=True)\ndef probekit_anatomy(model): return (yield)",
        "implements 'probekit_anatomy' as a wrapper; expected a plain function",
    ),
    "takes a name that is taken": (
        ANALYSIS + "Nice.name = 'gradient-inverter'\n@probekit.hookimpl\ndef probekit_analyses(): return [Nice]",
        "provides an analysis named 'gradient-inverter', a name that is already taken",
    ),
    "takes one name twice": (
        ANALYSIS + "class Other(Nice): pass\n@probekit.hookimpl\ndef probekit_analyses(): return [Nice, Other]",
        "provides an analysis named 'nice', a name that is already taken",
    ),
    "has a name that is a path": (
        ANALYSIS + "Nice.name = '../nice'\n@probekit.hookimpl\ndef probekit_analyses(): return [Nice]",
        "provides an analysis named '../nice'; a name has letters, digits and hyphens only",
    ),
    "has a name that options could not be told from": (
        ANALYSIS + "Nice.name = 'nice.v2'\n@probekit.hookimpl\ndef probekit_analyses(): return [Nice]",
        "provides an analysis named 'nice.v2'",
    ),
    "has no name": (
        ANALYSIS + "Nice.name = ''\n@probekit.hookimpl\ndef probekit_analyses(): return [Nice]",
        "which is no subclass of probekit.Analysis with a name",
    ),
    "returns an instance": (
        ANALYSIS + "@probekit.hookimpl\ndef probekit_analyses(): return [Nice(probekit.Options())]",
        "which is no subclass of probekit.Analysis with a name",
    ),
    "returns a class that is no analysis": (
        "import probekit\nclass Nice: name = 'nice'\n@probekit.hookimpl\ndef probekit_analyses(): return [Nice]",
        "which is no subclass of probekit.Analysis with a name",
    ),
    "returns words": ("import probekit\n@probekit.hookimpl\ndef probekit_analyses(): return 'nice'", "provides 'n'"),
    "returns nothing": ("import probekit\n@probekit.hookimpl\ndef probekit_analyses(): pass", "NoneType"),
    "returns a number": ("import probekit\n@probekit.hookimpl\ndef probekit_analyses(): return 5", "int"),
    "raises when asked for its analyses": (
        "import probekit\n@probekit.hookimpl\ndef probekit_analyses(): return 1 / 0",
        "ZeroDivisionError",
    ),
    "ends the interpreter when asked for its analyses": (
        "import probekit, sys\n@probekit.hookimpl\ndef probekit_analyses(): sys.exit(1)",
        "SystemExit: 1",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_plugin_that_is_broken_is_recorded_with_its_error_and_the_others_work(
    kind: str, point: Callable[..., EntryPoint]
) -> None:
    source, error = BROKEN[kind]
    plugins = Plugins(points=[point(source, name="a-third-party"), *bundled(), EntryPoint("zz", "json", "probekit")])
    record = record_of(plugins, "a-third-party")
    assert record.status == "failed"
    assert error in record.error
    assert "\n" not in record.error
    assert record.analyses == []
    assert sorted(plugins.analyses()) == BUNDLED
    assert [record_of(plugins, name).status for name in (*BUNDLED, "zz")] == ["loaded"] * 3


@pytest.mark.parametrize("value", ["no_such_module", "json:nothing_there", "json:dumps.x.y", "not a module!", ""])
def test_an_entry_point_to_nothing_is_recorded_with_its_error(value: str) -> None:
    plugins = Plugins(points=[EntryPoint("third-party", value, "probekit"), *bundled()])
    assert record_of(plugins, "third-party").status == "failed"
    assert record_of(plugins, "third-party").error.startswith("did not import: ")
    assert sorted(plugins.analyses()) == BUNDLED


def test_a_refused_plugin_is_not_called_later(point: Callable[..., EntryPoint]) -> None:
    source = """
import probekit

@probekit.hookimpl
def probekit_run_finished(directory, status): raise AssertionError("called")

@probekit.hookimpl
def probekit_analyses(): return [5]
"""
    plugins = Plugins(points=[point(source)])
    assert plugins.records[0].status == "failed"
    assert plugins.notify("probekit_run_finished", directory=Path(), status="done") == []


def test_one_module_under_two_names_counts_once(point: Callable[..., EntryPoint]) -> None:
    source = (
        ANALYSIS
        + """
@probekit.hookimpl
def probekit_analyses(): return [Nice]

@probekit.hookimpl
def probekit_run_finished(directory, status): raise RuntimeError("called")
"""
    )
    first = point(source, name="first")
    plugins = Plugins(points=[first, EntryPoint("second", first.value, "probekit")])
    assert [(record.name, record.status) for record in plugins.records] == [("first", "loaded"), ("second", "failed")]
    assert record_of(plugins, "second").error == "is the plugin 'first' a second time"
    assert list(plugins.analyses()) == ["nice"]
    assert len(plugins.notify("probekit_run_finished", directory=Path(), status="done")) == 1


def test_an_entry_point_that_takes_a_bundled_name_does_not_displace_it(point: Callable[..., EntryPoint]) -> None:
    impostor = point(ANALYSIS + "@probekit.hookimpl\ndef probekit_analyses(): return [Nice]", name="gradient-inverter")
    plugins = Plugins(points=[impostor, *bundled()])
    assert [record.status for record in plugins.records if record.name == "gradient-inverter"] == ["loaded", "failed"]
    assert plugins.analysis("gradient-inverter").__module__ == "probekit_plugins.gradient_inverter"
    assert "nice" not in plugins.analyses()


def test_an_interrupt_while_a_plugin_is_imported_is_no_error_of_the_plugin(point: Callable[..., EntryPoint]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Plugins(points=[point("raise KeyboardInterrupt")])


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_bundled_plugins_come_first_whatever_the_order_of_entry_points(point: Callable[..., EntryPoint]) -> None:
    third = point("", name="aaa")
    for points in ([third, *bundled()], [*reversed(bundled()), third]):
        assert [record.name for record in Plugins(points=points).records] == [*BUNDLED, "aaa"]


def test_an_entry_point_found_twice_is_loaded_once() -> None:
    assert [record.status for record in Plugins(points=[*bundled(), *bundled()]).records] == ["loaded", "loaded"]


def test_an_unknown_plugin_names_the_nearest_and_all() -> None:
    with pytest.raises(UsageError) as raised:
        Plugins(points=bundled()).analysis("gradient-invertor")
    assert "There is no plugin 'gradient-invertor'" in str(raised.value)
    assert "gradient-inverter, pseudo-inverse" in str(raised.value)
    assert str(raised.value).endswith("Did you mean 'gradient-inverter'?")


def test_asking_for_a_plugin_that_did_not_load_says_why(point: Callable[..., EntryPoint]) -> None:
    plugins = Plugins(points=[point("import no_such_module_anywhere", name="broken")])
    with pytest.raises(PluginError, match=r"'broken' did not load: .*No module named 'no_such_module_anywhere'"):
        plugins.analysis("broken")
    with pytest.raises(UsageError, match=r"'other'.*did not load.*broken"):
        plugins.analysis("other")


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_blocked_plugin_is_not_even_imported(
    way: str, point: Callable[..., EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    third = point("raise AssertionError", name="third-party")
    if way == "variable":
        monkeypatch.setenv("PROBEKIT_BLOCK_PLUGINS", " pseudo-inverse,, third-party ")
    plugins = Plugins(block=["third-party", "pseudo-inverse"] if way == "argument" else [], points=[third, *bundled()])
    assert {record.name: record.status for record in plugins.records} == {
        "gradient-inverter": "loaded",
        "pseudo-inverse": "blocked",
        "third-party": "blocked",
    }
    assert "plugin_under_test" not in sys.modules
    with pytest.raises(UsageError, match="'pseudo-inverse' is blocked"):
        plugins.analysis("pseudo-inverse")


def test_blocking_is_of_one_manager_alone() -> None:
    Plugins(block=BUNDLED, points=bundled())
    assert sorted(Plugins(points=bundled()).analyses()) == BUNDLED


# --- calling ---------------------------------------------------------------------------------------------------------


def test_one_implementation_that_raises_does_not_end_the_others() -> None:
    plugins, heard = Plugins(points=[]), []

    def listener(name: str, error: type[BaseException] | None) -> Any:
        @hookimpl
        def probekit_run_finished(directory: Path, status: str) -> None:
            heard.append((name, status))
            if error:
                raise error("first\nsecond")

        return types.SimpleNamespace(__name__=name, probekit_run_finished=probekit_run_finished)

    for name, error in (
        ("one", None),
        ("two", ValueError),
        ("three", SystemExit),
        ("four", ModelError),
        ("five", None),
    ):
        plugins.register(listener(name, error))
    failures = plugins.notify("probekit_run_finished", directory=Path("x"), status="done")
    assert heard == [(name, "done") for name in ("five", "four", "three", "two", "one")]
    assert len(failures) == 3
    assert failures[0] == "The plugin 'four': first second"
    assert "'three'" in failures[1]
    assert "SystemExit" in failures[1]
    assert "'two' failed in probekit_run_finished" in failures[2]
    assert "ValueError: first second" in failures[2]


def test_the_first_result_counts_and_the_last_plugin_is_asked_first() -> None:
    plugins, asked = Plugins(points=[]), []

    def provider(name: str, value: Any) -> Any:
        @hookimpl
        def probekit_anatomy(model: Any) -> Any:
            asked.append(name)
            return value

        return types.SimpleNamespace(__name__=name, probekit_anatomy=probekit_anatomy)

    for name, value in (("a", {"blocks": "a"}), ("b", {"blocks": "b"}), ("c", None)):
        plugins.register(provider(name, value))
    assert plugins.first("probekit_anatomy", model=object()) == {"blocks": "b"}
    assert asked == ["c", "b"]


def test_without_a_result_there_is_none() -> None:
    assert Plugins(points=bundled()).first("probekit_anatomy", model=object()) is None


def test_a_loader_that_breaks_is_named_with_the_way_to_leave_it_out() -> None:
    @hookimpl
    def probekit_load_model(spec: Any) -> Any:
        raise KeyError("layers")

    plugins = Plugins(points=[])
    plugins.register(plugin_object(probekit_load_model=probekit_load_model))
    with pytest.raises(PluginError, match=r"'object' failed in probekit_load_model.*--block-plugin object.*KeyError"):
        plugins.first("probekit_load_model", spec=None)


def test_a_loader_may_say_in_a_sentence_of_its_own_what_is_wrong() -> None:
    @hookimpl
    def probekit_load_model(spec: Any) -> Any:
        raise ModelError("The checkpoint is from another planet.")

    plugins = Plugins(points=[])
    plugins.register(plugin_object(probekit_load_model=probekit_load_model))
    with pytest.raises(ModelError, match=r"^The checkpoint is from another planet\.$"):
        plugins.first("probekit_load_model", spec=None)


def test_an_implementation_takes_only_the_arguments_that_it_names() -> None:
    heard = []

    @hookimpl
    def probekit_run_finished(status: str) -> None:
        heard.append(status)

    plugins = Plugins(points=[])
    plugins.register(plugin_object(probekit_run_finished=probekit_run_finished))
    assert plugins.notify("probekit_run_finished", directory=Path(), status="failed") == []
    assert heard == ["failed"]


def test_a_hook_implemented_under_another_name_is_called() -> None:
    @hookimpl(specname="probekit_analyses")
    def mine() -> list[type]:
        return [Sample]

    plugins = Plugins(points=[])
    assert plugins.register(plugin_object(mine=mine)).status == "loaded"
    assert plugins.analysis("sample") is Sample


def test_an_object_registers_as_a_plugin_as_a_module_does() -> None:
    class Plugin:
        @hookimpl
        def probekit_analyses(self) -> list[type]:
            return [Sample]

    plugins = Plugins(points=[])
    plugin = Plugin()
    assert plugins.register(plugin).analyses == [Sample]
    assert plugins.register(plugin).status == "failed"
    assert plugins.analysis("sample") is Sample
