"""The analyses of a run, one after another: those that only consume activations share one pass over the prompts.

One that raises, that takes too long or that leaves something on the model is a failure of its own; the others go on.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from probekit.analysis import ActivationAnalysis, Analysis, Context
from probekit.analysis.context import Progress
from probekit.errors import AnalysisError, ProbekitError, out_of_memory
from probekit.runs.checkpoints import FileStore, StopFlag
from probekit.runs.config import Resolved
from probekit.runs.containment import Containment, limits_time
from probekit.runs.directory import RunDirectory
from probekit.runs.keeping import draw, explain, finish_page, save
from probekit.runs.loaded import Loaded
from probekit.runs.out_of_memory import sentence as explain_memory
from probekit.runs.outcome import Run
from probekit.runs.recorder import Recorder

# What an analysis could put something else in place of, beside what is on the model.
PARTS = ("model", "tokenizer", "anatomy", "facts")


class Analyses:
    """The analyses of one run, and what becomes of each."""

    def __init__(
        self,
        directory: RunDirectory,
        manifest: dict[str, Any],
        resolved: Resolved,
        recorder: Recorder,
        loaded: Loaded,
        seconds_between_saves: float,
        time_limit: float | None,
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._resolved = resolved
        self._recorder = recorder
        self._loaded = loaded
        self._seconds_between_saves = seconds_between_saves
        self._time_limit = time_limit
        self._stop = StopFlag()
        self.outcome = Run(directory.path, manifest=manifest)

    def carry_out(self) -> bool:
        """Every analysis that is not done yet; False if an interrupt ended them before the last."""
        if self._time_limit is not None and not limits_time():
            self._recorder.message("No time limit is kept here: it takes the main thread of a Unix process.")
        statuses = self._manifest["analyses"]
        with self._stop.on_interrupt(self._recorder.show):
            for names in _sharing(self._resolved.analyses):
                waiting = [name for name in names if not self._is_done(name)]
                if not waiting:
                    continue
                self._directory.write_json("run.json", self._manifest)
                try:
                    if issubclass(self._resolved.analyses[names[0]], ActivationAnalysis):
                        self._share(waiting)
                    else:
                        self._run(names[0])
                except KeyboardInterrupt:
                    statuses.update({name: {"status": "interrupted"} for name in waiting if _waits(statuses[name])})
                    return False
        return True

    def _is_done(self, name: str) -> bool:
        if not (self._directory.analysis(name) / "DONE").is_file():
            self._manifest["analyses"][name] = {"status": "waiting"}
            return False
        self.outcome.results[name] = self._directory.result(name)
        self._manifest["analyses"][name] = {"status": "done"}
        self._store(name).clear()
        return True

    # --- one that has the subject to itself --------------------------------------------------------------------------

    def _run(self, name: str) -> None:
        member, subject = self._member(name), self._loaded.subject
        if subject is None:
            raise TypeError(f"{name} needs the model, and was given a recording")  # refused when a run is configured
        try:
            with self._without_trace([member]), self._judged(member):
                with member.containment.within():
                    result = member.analysis.run(subject, [prompt.copy() for prompt in self._loaded.prompts])
                self._keep(member, result)
        finally:
            self._clock([member])

    # --- those that share a pass -------------------------------------------------------------------------------------

    def _share(self, names: Sequence[str]) -> None:
        """One pass over the prompts for all of them, then the result of each."""
        members = [self._member(name) for name in names]
        began = time.perf_counter()
        try:
            with self._without_trace(members):
                for member in members:
                    with self._judged(member), member.containment.within():
                        member.sites = self._loaded.source.expand_sites(_consumer(member).sites())
                self._pass([member for member in members if not member.failed])
                for member in members:
                    if not member.failed:
                        with self._judged(member):
                            with member.containment.within():
                                result = _consumer(member).finish()
                            self._keep(member, result)
        finally:
            own = sum(member.containment.seconds for member in members)
            self._clock(members, time.perf_counter() - began - own)

    def _pass(self, members: Sequence[_Member]) -> None:
        """The batches of one pass to each of them, until none of them wants more."""
        if not members:
            return
        sites = list(dict.fromkeys(site for member in members for site in member.sites))
        source = self._loaded.source
        progress = Progress(self._recorder, self._store(members[0].name), "prompts", source.prompt_count)
        begun = False
        try:
            for batch in source.batches(sites):
                begun = True
                for member in members:
                    if not member.failed:
                        with self._judged(member), member.containment.within():
                            _consumer(member).update(batch.only(member.sites))
                if all(member.failed for member in members):
                    return
                progress.step(len(batch.prompts))
        except Exception as error:  # of the forward pass, or of a recording that is damaged
            if not begun and len(members) > 1:
                self._try_alone(members)
            if begun or not any(member.failed for member in members):
                for member in members:
                    if not member.failed:
                        self._fail(member, error)
        if not begun:
            self._pass([member for member in members if not member.failed])

    def _try_alone(self, members: Sequence[_Member]) -> None:
        """Whose sites are the reason that a pass cannot begin: the first batch for each of them alone tells."""
        for member in members:
            with self._judged(member):
                next(iter(self._loaded.source.batches(member.sites)))

    # --- each of them ------------------------------------------------------------------------------------------------

    def _member(self, name: str) -> _Member:
        config, analysis = self._resolved.config, self._resolved.analyses[name]
        context = Context(config.seed, name, self._recorder, self._store(name), self.outcome.results)
        containment = Containment(name, config.seed, self._recorder.message, self._time_limit)
        return _Member(name, analysis(self._resolved.options[name], context), containment)

    def _store(self, name: str) -> FileStore:
        return FileStore(self._directory, name, self._stop, self._seconds_between_saves)

    def _keep(self, member: _Member, result: object) -> None:
        """Save a result, and draw its page: the plugin's own code as well."""
        saved = save(member.analysis, result, self._directory)
        member.saved = True
        with member.containment.within():
            page = draw(member.analysis, saved)
        finish_page(page, saved, member.containment.lines_printed, self._directory)
        self.outcome.results[member.name] = saved
        self._manifest["analyses"][member.name] = {"status": "done"}
        self._store(member.name).clear()
        (self._directory.analysis(member.name) / "traceback.txt").unlink(missing_ok=True)

    @contextmanager
    def _judged(self, member: _Member) -> Iterator[None]:
        """What is raised while open is the failure of this analysis; but for an interrupt, which is the run's."""
        try:
            yield
        except (Exception, SystemExit) as error:  # a plugin may call sys.exit()
            self._fail(member, error)

    def _fail(self, member: _Member, error: BaseException) -> None:
        name = member.name
        member.failed = True
        self.outcome.results.pop(name, None)
        if not isinstance(error, ProbekitError):
            trace = f"analyses/{name}/traceback.txt"
            text = "".join(traceback.format_exception(error))
            self._directory.write(trace, text.encode(errors="backslashreplace"))
            self._recorder.message(f"The traceback of {name} is in {trace}.")
        subject, prompts = self._loaded.subject, self._loaded.prompts
        if out_of_memory(error) and subject is not None:
            sentence = explain_memory(error, subject, prompts, self._resolved.options[name])
        else:
            sentence = explain(error)
        if member.saved:
            sentence = f"{sentence.removesuffix('.')}. Its result is saved; only its page is missing."
        self.outcome.failures[name] = sentence
        self._manifest["analyses"][name] = {"status": "failed", "error": sentence}

    def _clock(self, members: Sequence[_Member], shared: float = 0.0) -> None:
        """Add up what each of them took, and what a pass took that they share."""
        timings = self._directory.read_json("timings.json")  # with what the analyses measured themselves
        for member in members:
            timings["analyses"][member.name] = timings["analyses"].get(member.name, 0.0) + member.containment.seconds
        if shared:
            timings["activations"] = timings.get("activations", 0.0) + shared
        self._directory.write_json("timings.json", timings)

    @contextmanager
    def _without_trace(self, members: Sequence[_Member]) -> Iterator[None]:
        """The model as it was, afterwards; those who left something on it have failed."""
        if self._loaded.subject is None:
            yield
            return
        from probekit.forward import Trace

        subject = self._loaded.subject
        trace, parts = Trace(subject.model), {name: getattr(subject, name) for name in PARTS}
        try:
            yield
        finally:
            for name, part in parts.items():
                setattr(subject, name, part)
            found, whole = trace.put_back()
            if found:
                self._blame(members, found, whole)

    def _blame(self, members: Sequence[_Member], found: Sequence[str], whole: bool) -> None:
        """What was left on the model is the failure of who had it; it is put back already but for weights."""
        left = f"left something on the model: {'; '.join(found)}"
        mended = "It was put back"
        if not whole and self._loaded.again is not None:
            again = self._loaded.again
            self._loaded = Loaded(self._loaded.source, self._loaded.facts)  # so that there are not two in memory
            self._loaded = again()
            mended = "The model was loaded again"
        for member in members:
            who = "It" if len(members) == 1 else f"One of {', '.join(other.name for other in members)}"
            self._directory.forget(member.name)
            member.saved = False
            self._fail(member, AnalysisError(f"{who} {left}. {mended}, and the result is not kept."))


@dataclass
class _Member:
    """One analysis while it is carried out."""

    name: str
    analysis: Analysis[Any]
    containment: Containment
    sites: Sequence[str] = ()
    saved: bool = False
    failed: bool = False


def _consumer(member: _Member) -> ActivationAnalysis[Any]:
    if not isinstance(member.analysis, ActivationAnalysis):
        raise TypeError(f"{member.name} consumes no activations")
    return member.analysis


def _waits(entry: Mapping[str, Any]) -> bool:
    return bool(entry["status"] == "waiting")


def _sharing(analyses: Mapping[str, type[Any]]) -> Iterator[list[str]]:
    """Names of analyses in the order in which they run; those that share a pass are one group, where the first is."""
    sharing = [name for name, analysis in analyses.items() if issubclass(analysis, ActivationAnalysis)]
    for name in analyses:
        if name not in sharing:
            yield [name]
        elif name == sharing[0]:
            yield sharing
