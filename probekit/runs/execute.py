"""A run, once through and never back: configuration → subject → analyses → results on disk → report."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import Context, Listener, site_expressions
from probekit.analysis.context import Silent
from probekit.errors import ProbekitError, UsageError, out_of_memory
from probekit.plugins import Plugins
from probekit.runs.carry_out import carry_out, explain
from probekit.runs.checkpoints import SECONDS_BETWEEN_SAVES, FileStore, StopFlag
from probekit.runs.command import command_line
from probekit.runs.config import Resolved, read_config, resolve
from probekit.runs.directory import SCHEMA, RunDirectory, encode_json
from probekit.runs.joint import compare_jointly
from probekit.runs.out_of_memory import sentence as explain_memory
from probekit.runs.outcome import Run
from probekit.runs.prompts import encode_prompts
from probekit.runs.render import render

if TYPE_CHECKING:
    from probekit.analysis import Prompt
    from probekit.subject import Subject

DEFAULT_FOLDER = Path("probekit-runs")
PACKAGES = (
    "probekit",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "tokenizers",
    "pluggy",
    "numpy",
)


class _Recorder:
    """Passes progress on, and keeps messages in the run's events."""

    def __init__(self, directory: RunDirectory, listener: Listener) -> None:
        self._directory = directory
        self._listener = listener

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        self._listener.progress(label, done, total, values)

    def message(self, text: str) -> None:
        self._directory.append_event({"event": "message", "text": text})
        self._listener.message(text)

    def show(self, text: str) -> None:
        """A message for now, not for the record."""
        self._listener.message(text)


def run(
    model: str | os.PathLike[str] | Mapping[str, Any] = "demo",
    plugins: str | Sequence[str] = ("gradient-inverter",),
    prompts: str | Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    *,
    input_ids: Sequence[Sequence[int]] = (),
    seed: int = 0,
    special_tokens: bool = True,
    manager: Plugins | None = None,
    listener: Listener | None = None,
) -> Run:
    """Run analyses on a model and write a run directory with a report, as `probekit run` does.

    `model` is a name or path, or a mapping of `ModelSpec` fields; `options` are those of the one analysis, or nested by
    analysis. `output` must not exist; without it a folder below `probekit-runs/` is made. An analysis that fails is in
    `failures`, and the others still run. Raises UsageError, PluginError or ModelError with one sentence.
    """
    values: dict[str, Any] = {
        "model": os.fspath(model) if isinstance(model, os.PathLike) else model,
        "plugins": [plugins] if isinstance(plugins, str) else list(plugins),
        "options": dict(options or {}),
        "seed": seed,
        "special_tokens": special_tokens,
    }
    if prompts:
        values["prompts"] = [prompts] if isinstance(prompts, str) else list(prompts)
    if input_ids:
        values["input_ids"] = [list(ids) for ids in input_ids]
    manager = manager or Plugins()
    resolved = resolve([("python", values)], manager)
    return execute(resolved, manager, None if output is None else Path(output), listener)


def execute(
    resolved: Resolved,
    plugins: Plugins,
    output: Path | None = None,
    listener: Listener | None = None,
    argv: Sequence[str] = (),
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
) -> Run:
    """Carry out a resolved configuration in a new run directory.

    Until the model and the prompts are there, nothing is left behind by a failure; from then on nothing is lost. Raises
    KeyboardInterrupt after an interrupted run has been written down; `resume` goes on with it.
    """
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "running",
        "command": command_line(resolved),
        "argv": list(argv),
        **resolved.document(),
        "versions": _versions(plugins),
        "analyses": {name: {"status": "waiting"} for name in resolved.analyses},
    }
    files = {
        "events.jsonl": b"",
        "config.toml": resolved.config.to_toml().encode(),
        "timings.json": encode_json({"started": _now(), "analyses": {}}),
        "run.json": encode_json(manifest),
    }
    directory = RunDirectory.create(output or default_output(resolved), files)
    recorder = _Recorder(directory, listener or Silent())
    try:
        loaded = _load(directory, manifest, resolved, plugins, recorder)
    except BaseException:
        directory.discard()
        raise
    return _analyse(directory, manifest, resolved, plugins, recorder, loaded, seconds_between_saves)


def resume(
    path: str | Path,
    plugins: Plugins | None = None,
    listener: Listener | None = None,
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
) -> Run:
    """Go on with a run that was interrupted or killed, or try the failed analyses of one again.

    What it ends with is byte for byte what an uninterrupted run would have written, times apart. Raises UsageError if
    there is nothing to resume, or if packages or weights have changed since.
    """
    path = Path(path)
    directory = RunDirectory.open(path)
    manifest = directory.read_json("run.json")
    if manifest["status"] == "done":
        raise UsageError(f"The run '{path}' is done; there is nothing to resume.")
    values = read_config(path / "config.toml")
    plugins = plugins or Plugins(values.get("block_plugins", []))
    resolved = resolve([("config.toml", values)], plugins)
    now = _versions(plugins)
    changed = [
        f"{name} ({was} then, {now.get(name)} now)"
        for name, was in manifest["versions"].items()
        if now.get(name) != was
    ]
    if changed:
        raise UsageError(f"The run '{path}' was begun with other packages: {', '.join(changed)}; start it anew.")
    directory.sweep()
    recorder = _Recorder(directory, listener or Silent())
    loaded = _load(directory, manifest, resolved, plugins, recorder)
    return _analyse(directory, manifest, resolved, plugins, recorder, loaded, seconds_between_saves)


def _load(
    directory: RunDirectory, manifest: dict[str, Any], resolved: Resolved, plugins: Plugins, recorder: _Recorder
) -> tuple[Subject, list[Prompt]]:
    """The model and the prompts, checked, and what is known of them written into the manifest."""
    from probekit.subject import load_spec

    timings = directory.read_json("timings.json")
    if "load" in timings:
        timings.setdefault("resumed", []).append(_now())
    configuration = manifest["configuration"]
    for sentence in plugins.notify("probekit_run_started", directory=directory.path, configuration=configuration):
        recorder.message(sentence)
    began = time.perf_counter()
    model = resolved.config.model
    subject = load_spec(model, plugins)
    prompts = encode_prompts(subject, resolved.config)
    for options in resolved.options.values():
        for expression in site_expressions(options):
            subject.expand_sites(expression)
    timings["load"] = timings.get("load", 0.0) + time.perf_counter() - began
    if _without_placement(manifest.get("model", subject.facts)) != _without_placement(subject.facts):
        raise UsageError(f"The model '{model.name}' is not the one that the run was begun with; start it anew.")
    manifest["model"] = subject.facts
    manifest["prompts"] = [{"text": prompt.text, "tokens": prompt.tokens} for prompt in prompts]
    directory.write_json("timings.json", timings)
    return subject, prompts


def _without_placement(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is and what kind of device computes, not where its parts are: a device map goes by what is free."""
    device = facts.get("device", {})
    places = {device} if isinstance(device, str) else set(device.values()) - {"disk"}
    kinds = {"cuda" if place.isdecimal() else place.partition(":")[0] for place in places}
    return {**facts, "device": (kinds - {"cpu"}) or {"cpu"}}


def _analyse(
    directory: RunDirectory,
    manifest: dict[str, Any],
    resolved: Resolved,
    plugins: Plugins,
    recorder: _Recorder,
    loaded: tuple[Subject, list[Prompt]],
    seconds_between_saves: float,
) -> Run:
    """Every analysis that is not done yet, then the report."""
    subject, prompts = loaded
    manifest["status"] = "running"
    outcome = Run(directory.path, manifest=manifest)
    stop = StopFlag()
    interrupted = False
    with stop.on_interrupt(recorder.show):
        for name, analysis in resolved.analyses.items():
            store = FileStore(directory, name, stop, seconds_between_saves)
            if (directory.analysis(name) / "DONE").is_file():
                outcome.results[name] = directory.result(name)
                manifest["analyses"][name] = {"status": "done"}
                store.clear()
                continue
            directory.write_json("run.json", manifest)
            began = time.perf_counter()
            try:
                outcome.results[name] = carry_out(
                    analysis,
                    resolved.options[name],
                    subject,
                    prompts,
                    directory,
                    Context(resolved.config.seed, name, recorder, store, outcome.results),
                )
                manifest["analyses"][name] = {"status": "done"}
                store.clear()
                (directory.analysis(name) / "traceback.txt").unlink(missing_ok=True)
            except KeyboardInterrupt:
                interrupted = True
                manifest["analyses"][name] = {"status": "interrupted"}
                break
            except (Exception, SystemExit) as error:  # a plugin may call sys.exit()
                if not isinstance(error, ProbekitError):
                    trace = f"analyses/{name}/traceback.txt"
                    directory.write(trace, traceback.format_exc().encode(errors="backslashreplace"))
                    recorder.message(f"The traceback of {name} is in {trace}.")
                if out_of_memory(error):
                    sentence = explain_memory(error, subject, prompts, resolved.options[name])
                else:
                    sentence = explain(error)
                outcome.failures[name] = sentence
                manifest["analyses"][name] = {"status": "failed", "error": sentence}
            finally:
                timings = directory.read_json("timings.json")  # with what the analysis measured itself
                timings["analyses"][name] = timings["analyses"].get(name, 0.0) + time.perf_counter() - began
                directory.write_json("timings.json", timings)
    compare_jointly(directory, manifest, resolved.analyses, outcome)
    outcome.status = "interrupted" if interrupted else "failed" if outcome.failures else "done"
    manifest["status"] = outcome.status
    render(directory, manifest)
    directory.write_json("run.json", manifest)  # last: until here the run is marked unfinished, and can be resumed
    for sentence in plugins.notify("probekit_run_finished", directory=directory.path, status=outcome.status):
        recorder.message(sentence)
    if interrupted:
        recorder.show(f"Interrupted; go on with: probekit run --resume {shlex.quote(str(directory.path))}")
        raise KeyboardInterrupt
    return outcome


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def default_output(resolved: Resolved, ending: str = "") -> Path:
    """A new folder below `probekit-runs/`, named by the time, the analyses, the model and an ending."""
    model = re.sub(r"[^\w.-]+", "-", Path(resolved.config.model.name).name).strip("-.") or "model"
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{'+'.join(resolved.analyses)}-{model}{ending}"
    candidates = (DEFAULT_FOLDER / (stem if number == 1 else f"{stem}-{number}") for number in range(1, sys.maxsize))
    return next(candidate for candidate in candidates if not candidate.exists())


def _versions(plugins: Plugins) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in [*PACKAGES, *sorted({record.distribution for record in plugins.records if record.distribution})]:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions
