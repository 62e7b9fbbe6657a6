"""A run, once through and never back: configuration → subject → analyses → results on disk → report."""

from __future__ import annotations

import platform
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import Context, Listener, Options, Result
from probekit.analysis.context import Silent
from probekit.errors import AnalysisError, ProbekitError, UsageError
from probekit.plugins import Plugins
from probekit.report import Page
from probekit.runs.command import command_line
from probekit.runs.config import Resolved, resolve
from probekit.runs.directory import SCHEMA, RunDirectory
from probekit.runs.prompts import encode_prompts
from probekit.runs.render import render

if TYPE_CHECKING:
    from probekit.analysis import Analysis, Prompt
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


@dataclass
class Run:
    """What a run came to: its directory, its status (`done`, `failed`, `interrupted`), the results and the failures."""

    path: Path
    status: str = "running"
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def report_path(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    @property
    def result(self) -> Result:
        """The result, where there is one analysis. Raises AnalysisError with its sentence if it failed."""
        for name, sentence in self.failures.items():
            raise AnalysisError(f"{name}: {sentence}")
        if len(self.results) != 1:
            raise UsageError(
                f"The run has {len(self.results)} results ({', '.join(self.results)}); choose one of `results`."
            )
        return next(iter(self.results.values()))

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit run --json` prints."""
        analyses: dict[str, Any] = {
            name: {"status": "done", "metrics": result.metrics} for name, result in self.results.items()
        }
        analyses |= {name: {"status": "failed", "error": text, "metrics": {}} for name, text in self.failures.items()}
        return {"run": str(self.path), "report": str(self.report_path), "status": self.status, "analyses": analyses}


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


def run(
    model: str | Mapping[str, Any] = "demo",
    plugins: Sequence[str] = ("gradient-inverter",),
    prompts: Sequence[str] = (),
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
        "model": {"name": model} if isinstance(model, str) else dict(model),
        "plugins": list(plugins),
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
) -> Run:
    """Carry out a resolved configuration.

    Until the model and the prompts are there, nothing is left behind by a failure; from then on nothing is lost. Raises
    KeyboardInterrupt after an interrupted run has been written down.
    """
    from probekit.subject import load_spec

    config = resolved.config
    directory = RunDirectory.create(output or _default_output(resolved))
    recorder = _Recorder(directory, listener or Silent())
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "running",
        "command": command_line(resolved),
        "argv": list(argv),
        **resolved.document(),
        "versions": _versions(plugins),
    }
    timings: dict[str, Any] = {"started": datetime.now().astimezone().isoformat(timespec="seconds"), "analyses": {}}
    try:
        directory.write_json("run.json", manifest)
        directory.write("config.toml", config.to_toml().encode())
        for sentence in plugins.notify(
            "probekit_run_started", directory=directory.path, configuration=manifest["configuration"]
        ):
            recorder.message(sentence)
        began = time.perf_counter()
        subject = load_spec(config.model, plugins)
        prompts = encode_prompts(subject, config)
        timings["load"] = time.perf_counter() - began
    except BaseException:
        directory.discard()
        raise
    manifest["model"] = subject.facts
    manifest["prompts"] = [{"text": prompt.text, "tokens": prompt.tokens} for prompt in prompts]
    manifest["analyses"] = {name: {"status": "waiting"} for name in resolved.analyses}
    outcome = Run(directory.path)
    interrupted = False
    for name, analysis in resolved.analyses.items():
        directory.write_json("run.json", manifest)
        began = time.perf_counter()
        try:
            outcome.results[name] = _carry_out(
                analysis, resolved.options[name], subject, prompts, directory, Context(config.seed, name, recorder)
            )
            manifest["analyses"][name] = {"status": "done"}
        except KeyboardInterrupt:
            interrupted = True
            manifest["analyses"][name] = {"status": "interrupted"}
            break
        except Exception as error:
            sentence = _explain(error)
            outcome.failures[name] = sentence
            manifest["analyses"][name] = {"status": "failed", "error": sentence}
            if not isinstance(error, ProbekitError):
                directory.write(
                    f"analyses/{name}/traceback.txt", traceback.format_exc().encode(errors="backslashreplace")
                )
                recorder.message(f"The traceback is in {directory.analysis(name) / 'traceback.txt'}")
        finally:
            timings["analyses"][name] = time.perf_counter() - began
    outcome.status = "interrupted" if interrupted else "failed" if outcome.failures else "done"
    manifest["status"] = outcome.status
    directory.write_json("timings.json", timings)
    directory.write_json("run.json", manifest)
    render(directory)
    for sentence in plugins.notify("probekit_run_finished", directory=directory.path, status=outcome.status):
        recorder.message(sentence)
    if interrupted:
        raise KeyboardInterrupt
    return outcome


def _carry_out(
    analysis: type[Analysis[Any]],
    options: Options,
    subject: Subject,
    prompts: Sequence[Prompt],
    directory: RunDirectory,
    context: Context,
) -> Result:
    """Run one analysis, save its result, and draw its page from what was saved."""
    import torch

    folder = f"analyses/{analysis.name}"
    instance = analysis(options, context)
    # A plugin may draw from the global generator: seeded for it, and the caller's given back.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(context.seed)
        result = instance.run(subject, prompts)
    if not isinstance(result, Result):
        raise AnalysisError(f"The analysis returned a {type(result).__name__}; expected a probekit.Result.")
    directory.write_json(f"{folder}/options.json", options.model_dump(mode="json"))
    for file, content in result.encode().items():
        directory.write(f"{folder}/{file}", content)
    saved = Result.read(directory.analysis(analysis.name))
    page = Page(analysis.name)
    if saved.finding:
        page.finding(saved.finding)
    instance.report(saved, page)
    for note in saved.notes:
        page.note(note)
    directory.write_json(f"{folder}/page.json", page.to_json())
    directory.write(f"{folder}/DONE", b"")
    return saved


def _explain(error: Exception) -> str:
    """One sentence for what ended an analysis."""
    import torch

    if isinstance(error, ProbekitError):
        return str(error)
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if memory:
        return (
            "Out of memory. Fewer restarts (-o restarts=…), a shorter prompt, an earlier site, or a smaller precision "
            "(--dtype bfloat16, --quantization int8) needs less."
        )
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _default_output(resolved: Resolved) -> Path:
    model = re.sub(r"[^\w.-]+", "-", Path(resolved.config.model.name).name).strip("-.") or "model"
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{'+'.join(resolved.analyses)}-{model}"
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
