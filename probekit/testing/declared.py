"""Checks of what an analysis says about itself: its name, its options, what its import costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tomli_w

from probekit.analysis import Options, parse_options
from probekit.errors import UsageError
from probekit.hookspecs import hookimpl
from probekit.plugins import Plugins
from probekit.testing.case import Case, sentence
from probekit.testing.outcome import CannotJudgeError

HEAVY = ("torch", "transformers")
SECONDS_TO_IMPORT = 120
UNKNOWN = "no_such_option"

# Run in a fresh process: what importing a module brings along, written into a file, since it may print or exit.
IMPORT = """
import importlib, json, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[2])
error = ""
try:
    importlib.import_module(sys.argv[1])
except BaseException as raised:
    error = f"{type(raised).__name__}: {raised}"
Path(sys.argv[3]).write_text(json.dumps({"error": error, "imported": sorted(sys.modules)}), encoding="utf-8")
"""


def loads(case: Case) -> Iterator[str]:
    """What the plugin manager says of the analysis, and what a listing would miss."""
    analysis = case.analysis

    @hookimpl
    def probekit_analyses() -> list[type[Any]]:
        return [analysis]

    record = Plugins(points=()).register(SimpleNamespace(__name__="checked", probekit_analyses=probekit_analyses))
    if record.error:
        yield sentence(f"The plugin manager refuses it: it {record.error}")
    elif not analysis.summary():
        yield f"The class {analysis.__name__} has no docstring; its first line is what `probekit plugins` shows."


def has_options(case: Case) -> Iterator[str]:
    """What is missing or lost of the options."""
    model: Any = case.analysis.options_model
    if not (isinstance(model, type) and issubclass(model, Options)):
        yield f"Its options are {model!r}; expected a subclass of probekit.Options, as in probekit.Analysis[MyOptions]."
        return
    for name, field in model.model_fields.items():
        if field.is_required():
            yield f"The option '{name}' has no default; give it one."
        if not field.description:
            yield f"The option '{name}' has no description; write Field(…, description=…)."
    try:
        parse_options(model, {**case.values, UNKNOWN: 1}, case.analysis.name)
    except UsageError as error:
        if UNKNOWN not in str(error):
            raise CannotJudgeError(sentence(str(error))) from None
    else:
        yield f"The unknown option '{UNKNOWN}' is taken; leave extra=\"forbid\" of probekit.Options as it is."
    options = case.options
    try:
        plain = options.model_dump(mode="json")
        again = {"JSON": json.loads(json.dumps(plain, allow_nan=False))}
        # TOML cannot say None: an option that is left out has its default.
        again["TOML"] = tomllib.loads(tomli_w.dumps(options.model_dump(mode="json", exclude_none=True)))
    except Exception as error:
        yield f"The options cannot be written as JSON and TOML: {case.described(error)}"
        return
    for language, values in again.items():
        try:
            changed = _changed(options, parse_options(model, values, case.analysis.name))
        except Exception as error:
            yield f"The options written as {language} are not read back: {case.described(error)}"
            continue
        if changed:
            yield f"The options written as {language} and read back are others: {', '.join(changed)}."


def _changed(options: Options, again: Options) -> list[str]:
    names = [name for name in type(options).model_fields if getattr(options, name) != getattr(again, name)]
    return [f"'{name}' was {getattr(options, name)!r} and is {getattr(again, name)!r}" for name in names]


def imports_no_torch(case: Case) -> Iterator[str]:
    """What importing the analysis's module in a fresh process brings along."""
    return brought_by(case.module)


def brought_by(module: str) -> Iterator[str]:
    """What importing a module in a fresh process brings along that a listing of plugins must not wait for."""
    if module == "__main__":
        raise CannotJudgeError("The analysis is defined in __main__; put it into a module, which can be imported.")
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict.json"
        words = [sys.executable, "-c", IMPORT, module, json.dumps(sys.path), str(verdict)]
        try:
            ended = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS_TO_IMPORT, check=False
            )
        except subprocess.TimeoutExpired:
            yield f"Importing {module} takes more than {SECONDS_TO_IMPORT} s."
            return
        if not verdict.is_file():
            yield f"Importing {module} ends the process, with exit code {ended.returncode}."
            return
        found = json.loads(verdict.read_text(encoding="utf-8"))
    if found["error"]:
        yield sentence(f"Importing {module} in a fresh process raises {found['error']}")
    heavy = [name for name in HEAVY if name in found["imported"]]
    if heavy:
        yield f"Importing {module} imports {' and '.join(heavy)}; import them in the functions that need them."
    if ended.stdout:
        shown = ended.stdout.decode(errors="replace").strip()[:60]
        yield f"Importing {module} prints {shown!r}; a plugin prints nothing."
