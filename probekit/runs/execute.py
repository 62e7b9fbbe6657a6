"""A run, once through and never back: configuration → subject → analyses → results on disk → report."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from probekit.analysis import Listener, site_expressions
from probekit.analysis.context import Silent
from probekit.errors import BusyError, ProbekitError, StorageError, UsageError
from probekit.plugins import Plugins
from probekit.runs.analyse import Analyses
from probekit.runs.checkpoints import SECONDS_BETWEEN_SAVES, StopFlag
from probekit.runs.command import command_line
from probekit.runs.config import Resolved, grants_of, read_config, resolve, said
from probekit.runs.directory import SCHEMA, RunDirectory, encode_json
from probekit.runs.hashes import keep_hashes
from probekit.runs.joint import compare_jointly
from probekit.runs.keeping import explain
from probekit.runs.loaded import Loaded, load
from probekit.runs.manifest import read_manifest
from probekit.runs.outcome import Run
from probekit.runs.profiling import (
    DRAWING,
    LOADING,
    OPTIONS,
    check_profile,
    keep_profile,
    phase,
    profile_model,
    profiling,
    weigh,
)
from probekit.runs.recorder import Recorder
from probekit.runs.render import render
from probekit.runs.repair import Repair
from probekit.runs.state import standard
from probekit.runs.subjects import Subjects
from probekit.runs.versions import versions

DEFAULT_FOLDER = Path("probekit-runs")


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
    activations: str | Path | None = None,
    time_limit: float | None = None,
    profile: bool = False,
    manager: Plugins | None = None,
    listener: Listener | None = None,
) -> Run:
    """Run analyses on a model and write a run directory with a report, as `probekit run` does.

    `model` is a name or path, or a mapping of `ModelSpec` fields; `options` are those of the one analysis, or nested by
    analysis. `output` must not exist; without it a folder below `probekit-runs/` is made. `activations` names a
    recording that takes the place of the model and the prompts, for analyses of activations. An analysis that fails, or
    takes longer than `time_limit` seconds, is in `failures`, and the others still run. With `profile` the report also
    tells where time and memory went. Raises UsageError, PluginError or ModelError with one sentence.
    """
    values: dict[str, Any] = {
        "plugins": [plugins] if isinstance(plugins, str) else list(plugins),
        "options": dict(options or {}),
        "seed": seed,
        "special_tokens": special_tokens,
    }
    if activations is not None:
        values["activations"] = os.fspath(activations)
    if activations is None or model != "demo":
        values["model"] = os.fspath(model) if isinstance(model, os.PathLike) else model
    if prompts:
        values["prompts"] = [prompts] if isinstance(prompts, str) else list(prompts)
    if input_ids:
        values["input_ids"] = [list(ids) for ids in input_ids]
    with profiling(profile):
        with phase(OPTIONS):
            manager = manager or Plugins()
            resolved = resolve([("python", values)], manager, grants_of(values))
        place = None if output is None else Path(output)
        return execute(resolved, manager, place, listener, time_limit=time_limit)


@standard()
def execute(
    resolved: Resolved,
    plugins: Plugins,
    output: Path | None = None,
    listener: Listener | None = None,
    argv: Sequence[str] = (),
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
    time_limit: float | None = None,
    subjects: Subjects | None = None,
    stop: StopFlag | None = None,
) -> Run:
    """Carry out a resolved configuration in a new run directory.

    `subjects` hold the model of an earlier run, and this one's afterwards; `stop` ends the run at the end of a step, as
    an interrupt does. Until the model and the prompts are there, nothing is left behind by a failure; from then on
    nothing is lost. Raises KeyboardInterrupt after an interrupted run has been written down; `resume` goes on with it.
    """
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "running",
        "command": command_line(resolved),
        "argv": list(argv),
        **resolved.document(),
        "versions": versions(plugins),
        "broken_plugins": {record.name: record.error for record in plugins.records if record.status == "failed"},
        "analyses": {name: {"status": "waiting"} for name in resolved.analyses},
    }
    files = {
        "events.jsonl": b"",
        "config.toml": resolved.config.to_toml().encode(),
        "timings.json": encode_json({"started": _now(), "analyses": {}}),
        "run.json": encode_json(manifest),
    }
    with _created(resolved, output, files) as directory:
        recorder = Recorder(directory, listener or Silent())
        try:
            repair = _load(directory, manifest, resolved, plugins, recorder, subjects, resumed=False)
        except BaseException:
            directory.discard()
            raise
        how = (seconds_between_saves, time_limit, subjects, stop)
        return _analyse(directory, manifest, resolved, plugins, recorder, repair, *how)


@standard()
def resume(
    path: str | Path,
    plugins: Plugins | None = None,
    listener: Listener | None = None,
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
    time_limit: float | None = None,
    subjects: Subjects | None = None,
    stop: StopFlag | None = None,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Run:
    """Go on with a run that was interrupted or killed, or try the failed analyses of one again.

    What it ends with is byte for byte what an uninterrupted run would have written, times apart. A run that was begun
    with `trust_remote_code` or `allow_pickle` needs it again: its directory grants nothing. Raises UsageError if
    there is nothing to resume, or if packages or weights have changed since.
    """
    path = Path(path)
    with RunDirectory.open_to_write(path) as directory:
        manifest = read_manifest(directory)
        if manifest["status"] == "done":
            raise UsageError(f"The run '{path}' is done; there is nothing to resume.")
        values = read_config(path / "config.toml")
        plugins = plugins or Plugins(values.get("block_plugins", []))
        granted = said(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        resolved = resolve([("config.toml", values)], plugins, granted)
        now = versions(plugins)
        changed = [
            f"{name} ({was} then, {now.get(name)} now)"
            for name, was in manifest["versions"].items()
            if now.get(name) != was
        ]
        if changed:
            raise UsageError(f"The run '{path}' was begun with other packages: {', '.join(changed)}; start it anew.")
        directory.sweep()
        check_profile(directory)
        recorder = Recorder(directory, listener or Silent())
        repair = _load(directory, manifest, resolved, plugins, recorder, subjects, resumed=True)
        how = (seconds_between_saves, time_limit, subjects, stop)
        return _analyse(directory, manifest, resolved, plugins, recorder, repair, *how)


def _created(resolved: Resolved, output: Path | None, files: Mapping[str, bytes]) -> RunDirectory:
    """The run's directory; one without a name gets the next where another process takes it first."""
    while True:
        try:
            return RunDirectory.create(output or default_output(resolved), files)
        except BusyError:
            if output is not None:
                raise


def _load(
    directory: RunDirectory,
    manifest: dict[str, Any],
    resolved: Resolved,
    plugins: Plugins,
    recorder: Recorder,
    subjects: Subjects | None,
    resumed: bool,
) -> Repair:
    """What the analyses work on, and what is known of it written into the manifest; plugins are told that a run begins,
    and that it came to nothing if it does.
    """
    place, configuration = directory.path, manifest["configuration"]
    told = plugins.notify("probekit_run_started", directory=place, configuration=configuration, resumed=resumed)
    for sentence in told:
        recorder.message(sentence)
    with _told_if_abandoned(directory, manifest, plugins, recorder):
        return Repair(_checked(directory, manifest, resolved, plugins, subjects))


@contextmanager
def _told_if_abandoned(
    directory: RunDirectory, manifest: dict[str, Any], plugins: Plugins, recorder: Recorder
) -> Iterator[None]:
    """Plugins hear of a run that ends by an exception while this is open."""
    try:
        yield
    except BaseException as error:
        place = directory.path
        run = Run(place, "abandoned", failures={"run": explain(error)}, manifest=manifest)
        for sentence in plugins.notify("probekit_run_finished", directory=place, status=run.status, run=run):
            recorder.show(sentence)
        raise


@contextmanager
def _resumable(directory: RunDirectory, recorder: Recorder) -> Iterator[None]:
    """What ends the run while open, an interrupt or a disk that cannot be written, is told with how to go on."""
    try:
        yield
    except ProbekitError as error:
        if not directory.path.is_dir():  # whatever it was that missed it first
            raise StorageError.removed(directory.path) from None
        if not isinstance(error, StorageError):
            raise
        raise StorageError(f"{error} With that mended, go on with: {_again(directory)}", directory.path) from None
    except KeyboardInterrupt:
        recorder.show(f"Interrupted; go on with: {_again(directory)}")
        raise


def _again(directory: RunDirectory) -> str:
    return f"probekit run --resume {shlex.quote(str(directory.path))}"


def _checked(
    directory: RunDirectory,
    manifest: dict[str, Any],
    resolved: Resolved,
    plugins: Plugins,
    subjects: Subjects | None,
) -> Loaded:
    """What the analyses work on, with the sites of their options, checked to be what the run was begun with."""
    timings = directory.read_json("timings.json")
    if "load" in timings:
        timings.setdefault("resumed", []).append(_now())
    began = time.perf_counter()
    with phase(LOADING):
        loaded = load(resolved.config, plugins, subjects)
        for options in resolved.options.values():
            for expression in site_expressions(options):
                loaded.source.expand_sites(expression)
    timings["load"] = timings.get("load", 0.0) + time.perf_counter() - began
    for what in ("model", "recording"):
        was, now = manifest.get(what, loaded.facts.get(what)), loaded.facts.get(what)
        if was is not None and _without_placement(was) != _without_placement(now or {}):
            named = resolved.config.model.name if what == "model" else resolved.config.activations
            raise UsageError(f"The {what} '{named}' is not the one that the run was begun with; start it anew.")
    manifest.update(loaded.facts)
    directory.write_json("timings.json", timings)
    return loaded


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
    recorder: Recorder,
    repair: Repair,
    seconds_between_saves: float,
    time_limit: float | None,
    subjects: Subjects | None,
    stop: StopFlag | None,
) -> Run:
    """Every analysis that is not done yet, then the report, the hashes of all files, and that the run is over."""
    manifest["status"] = "running"
    analyses = Analyses(directory, manifest, resolved, recorder, repair, seconds_between_saves, time_limit, stop)
    outcome = analyses.outcome
    with _told_if_abandoned(directory, manifest, plugins, recorder), _resumable(directory, recorder):
        directory.write_json("run.json", manifest)  # unfinished, also where only a page is missing
        profile_model(repair)
        whole = analyses.carry_out()
        if whole:
            weigh(repair.loaded, resolved.options)
        with phase(DRAWING):
            compare_jointly(directory, manifest, resolved.analyses, outcome)
        outcome.status = "interrupted" if not whole else "failed" if outcome.failures else "done"
        manifest["status"] = outcome.status
        with phase(DRAWING):
            render(directory, manifest)
        if keep_profile(directory):  # of which drawing is a part: with that known, once more
            render(directory, manifest)
        if whole:
            keep_hashes(directory, manifest)
        directory.write_json("run.json", manifest)  # last: until here the run is marked unfinished, and can be resumed
    place, status = directory.path, outcome.status
    for sentence in plugins.notify("probekit_run_finished", directory=place, status=status, run=outcome):
        recorder.message(sentence)
    if not whole:
        recorder.show(f"Interrupted; go on with: {_again(directory)}")
        raise KeyboardInterrupt
    if subjects is not None and outcome.status == "done":
        subjects.keep(repair.loaded.subject)
    return outcome


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def default_output(resolved: Resolved, ending: str = "") -> Path:
    """A new folder below `probekit-runs/`, named by the time, the analyses, the model and an ending."""
    model = re.sub(r"[^\w.-]+", "-", Path(resolved.config.model.name).name).strip("-.") or "model"
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{'+'.join(resolved.analyses)}-{model}{ending}"
    candidates = (DEFAULT_FOLDER / (stem if number == 1 else f"{stem}-{number}") for number in range(1, sys.maxsize))
    return next(candidate for candidate in candidates if not candidate.exists())
