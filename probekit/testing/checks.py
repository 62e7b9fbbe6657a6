"""The promises of an analysis, each with its check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from probekit.testing.case import Case, sentence
from probekit.testing.computed import leaves_no_state, leaves_no_trace, repeats
from probekit.testing.declared import brought_by, has_options, imports_no_torch, loads
from probekit.testing.outcome import CannotJudgeError, Check
from probekit.testing.reported import draws_hostile_tokens

IMPORT = ("no torch at import", "Importing its module imports neither torch nor transformers.")

CHECKS: tuple[tuple[str, str, Callable[[Case], Iterable[str]]], ...] = (
    ("loads", "It has a name and a summary, and the plugin manager takes it.", loads),
    (
        "options",
        "Every option has a default and a description, survives JSON and TOML, and an unknown key is refused.",
        has_options,
    ),
    (*IMPORT, imports_no_torch),
    ("same seed, same result", "Two runs with one seed give the same bytes.", repeats),
    ("global state", "A run changes nothing of the process, and prints nothing.", leaves_no_state),
    (
        "hostile tokens",
        "A result with hostile tokens is saved, read back and drawn, and no token gets out of its place.",
        draws_hostile_tokens,
    ),
    (
        "no trace on the model",
        "After a run, a run on a model in training and an interrupted run, the model is what it was.",
        leaves_no_trace,
    ),
)


def checks(analysis: type[Any], options: Mapping[str, Any] | None = None, /, *, module: str = "") -> Iterator[Check]:
    """Every check of an analysis, each as soon as it has ended: its name, its promise, and what is wrong.

    `options` are values for the analysis's options where the defaults do not fit a model of 3 blocks, width 32 and a
    context of 64; `module` is where the plugin is loaded from, by default the module that defines the class. Where an
    analysis is refused at the start, the checks that need it to run are not made.
    """
    case = Case(analysis, dict(options or {}), module or str(getattr(analysis, "__module__", "")))
    for name, promise, check in CHECKS:
        try:
            problems = tuple(check(case))
        except CannotJudgeError as error:
            problems = (str(error),)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as an attribute of the class that is of the wrong kind
            problems = (sentence(f"The check came to no end: {case.described(error)}"),)
        yield Check(name, promise, problems)
        if problems and check is loads:
            return


def check_import(module: str) -> Check:
    """The check of a plugin that provides no analysis, but other hooks: what importing its module costs."""
    return Check(*IMPORT, tuple(brought_by(module)))


def check_analysis(analysis: type[Any], /, **options: Any) -> None:
    """Check that an analysis does what every analysis must do, on tiny models; see `CHECKS` for the promises.

    `options` are values for its options, as for `checks`. Raises AssertionError with a sentence for each thing that is
    wrong, all of them.
    """
    broken = [check for check in checks(analysis, options) if check.problems]
    if broken:
        lines = [f"{check.name}: {problem}" for check in broken for problem in check.problems]
        name = getattr(analysis, "name", "") or getattr(analysis, "__name__", repr(analysis))
        raise AssertionError("\n".join([f"{name} does not do what an analysis must do.", *lines]))
