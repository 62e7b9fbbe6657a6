"""The analyses of a run, one after another: those that only consume activations share one pass over the prompts.

One that raises, that takes too long or that leaves something on the model is a failure of its own; the others go on.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probekit.analysis import ActivationAnalysis, Analysis, site_expression
from probekit.analysis.context import Progress
from probekit.errors import AnalysisError, ProbekitError, StorageError, out_of_memory
from probekit.files import storing
from probekit.runs.checkpoints import FileStore, StopFlag
from probekit.runs.config import Resolved
from probekit.runs.containment import Containment, limits_time
from probekit.runs.determinism import deterministic, told, with_note
from probekit.runs.directory import RunDirectory
from probekit.runs.keeping import draw, explain, finish_page, save
from probekit.runs.out_of_memory import sentence as explain_memory
from probekit.runs.outcome import Run
from probekit.runs.profiling import CHECKS, PASSES, SAVING, context_class, keep_profile, phase, timed_progress
from probekit.runs.recorder import Recorder
from probekit.runs.repair import Repair, no_hooks_everywhere

if TYPE_CHECKING:
    from probekit.activations import ActivationSource


# Where a state has the operators without a deterministic algorithm that an analysis used.
UNREPEATABLE = "operators without a deterministic algorithm"


class Analyses:
    """The analyses of one run, and what becomes of each."""

    def __init__(
        self,
        directory: RunDirectory,
        manifest: dict[str, Any],
        resolved: Resolved,
        recorder: Recorder,
        repair: Repair,
        seconds_between_saves: float,
        time_limit: float | None,
        stop: StopFlag | None = None,
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._resolved = resolved
        self._recorder = recorder
        self._repair = repair
        self._seconds_between_saves = seconds_between_saves
        self._time_limit = time_limit
        self._stop = stop or StopFlag()
        self.outcome = Run(directory.path, manifest=manifest)

    def carry_out(self) -> bool:
        """Every analysis that is not done yet; False if an interrupt ended them before the last."""
        if self._time_limit is not None and not limits_time():
            self._recorder.message("No time limit is kept here: it takes the main thread of a Unix process.")
        statuses = self._manifest["analyses"]
        with self._stop.on_interrupt(self._recorder.show), deterministic():
            for names in _sharing(self._resolved.analyses):
                waiting = [name for name in names if not self._is_done(name)]
                if not waiting:
                    continue
                self._directory.write_json("run.json", self._manifest)
                try:
                    if _shares(self._resolved.analyses[names[0]]):
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
        member = self._member(name)
        try:
            with self._without_trace([member]), self._judged(member):
                with member.containment.within():
                    prompts = [prompt.copy() for prompt in self._repair.loaded.prompts]
                    result = member.made().run(self._repair.subject, prompts)
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
                    with self._judged(member), no_hooks_everywhere(), member.containment.within():
                        member.sites = self._source.expand_sites(site_expression(member.consumer()))
                self._pass(members)
                for member in _left(members):
                    with self._judged(member):
                        with no_hooks_everywhere(), member.containment.within():
                            result = member.consumer().finish()
                        self._keep(member, result)
        finally:
            own = sum(member.containment.seconds for member in members)
            self._clock(members, time.perf_counter() - began - own)

    def _pass(self, members: Sequence[_Member]) -> None:
        """The batches of one pass to each of them, until none of them wants more."""
        while waiting := _left(members):
            sites = list(dict.fromkeys(site for member in waiting for site in member.sites))
            progress = Progress(self._recorder, self._store(waiting[0].name), "prompts", self._source.prompt_count)
            begun = False
            try:
                computing = told(*(member.containment.saw for member in waiting))
                with phase(PASSES), timed_progress(progress, PASSES, "prompts"), computing:
                    for batch in self._source.batches(sites):
                        begun = True
                        for member in _left(waiting):
                            with self._judged(member), no_hooks_everywhere(), member.containment.within():
                                member.consumer().update(batch.only(member.sites))
                        if not _left(waiting):
                            return
                        progress.step(len(batch.prompts))
                return
            except StorageError:
                raise
            except Exception as error:  # of the forward pass, or of a recording that is damaged
                if not begun and len(waiting) > 1:
                    self._try_alone(waiting)
                if begun or len(_left(waiting)) == len(waiting):
                    for member in _left(waiting):
                        self._fail(member, error)

    def _try_alone(self, members: Sequence[_Member]) -> None:
        """Whose sites are the reason that a pass cannot begin: the first batch for each of them alone tells."""
        for member in members:
            with self._judged(member):
                next(iter(self._source.batches(member.sites)))

    # --- each of them ------------------------------------------------------------------------------------------------

    @property
    def _source(self) -> ActivationSource:
        return self._repair.loaded.source

    def _member(self, name: str) -> _Member:
        import torch

        config, analysis = self._resolved.config, self._resolved.analyses[name]
        store = self._store(name)
        unrepeatable = store.read("stage", UNREPEATABLE) or {}

        def keep(operators: set[str]) -> None:  # for a process that goes on after them
            store.write("stage", UNREPEATABLE, dict.fromkeys(sorted(operators), torch.empty(0)))

        containment = Containment(name, config.seed, self._recorder.message, self._time_limit, unrepeatable, keep)

        def make() -> Analysis[Any]:
            loaded, store = self._repair.loaded, self._store(name)
            results, facts = copy.deepcopy(self.outcome.results), loaded.source.facts  # its own, to do with as it likes
            context = context_class()(
                config.seed, name, self._recorder, store, results, lambda: self._repair.loaded.subject, facts
            )
            options = self._resolved.options[name].model_copy(deep=True)
            made: Analysis[Any] = analysis(options, context)
            return made

        return _Member(name, make, containment)

    def _store(self, name: str) -> FileStore:
        return FileStore(self._directory, name, self._stop, self._seconds_between_saves)

    def _keep(self, member: _Member, result: object) -> None:
        """Save a result, and draw its page: the plugin's own code as well."""
        with phase(SAVING):
            noted = with_note(result, member.containment.unrepeatable)
            saved = save(member.name, self._resolved.options[member.name], noted, self._directory)
        member.saved = True
        with no_hooks_everywhere(), member.containment.within():
            page = draw(member.made(), saved)
        self._forget_traceback(member.name)
        with phase(SAVING):
            finish_page(page, saved, member.containment.lines_printed, self._directory)
        self.outcome.results[member.name] = saved
        self._manifest["analyses"][member.name] = {"status": "done"}
        self._store(member.name).clear()

    def _forget_traceback(self, name: str) -> None:
        """That of an earlier try."""
        with storing(self._directory.path):
            (self._directory.analysis(name) / "traceback.txt").unlink(missing_ok=True)

    @contextmanager
    def _judged(self, member: _Member) -> Iterator[None]:
        """What is raised while open is the failure of this analysis; but for an interrupt, or a disk that cannot be
        written, which are the run's.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit()
            if isinstance(error, StorageError) and error.folder == self._directory.path:
                raise
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
        else:
            self._forget_traceback(name)
        loaded = self._repair.loaded
        if out_of_memory(error) and loaded.subject is not None:
            sentence = explain_memory(error, loaded.subject, loaded.prompts, self._resolved.options[name])
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
        keep_profile(self._directory)

    @contextmanager
    def _without_trace(self, members: Sequence[_Member]) -> Iterator[None]:
        """The subject as it was, afterwards; those who left something on its model have failed."""
        interrupted = False

        def blame(left: str) -> None:
            who = "It" if len(members) == 1 else f"One of {', '.join(member.name for member in members)}"
            if interrupted:  # what it has computed so far may still be of use to a resumed run
                self._recorder.message(f"{members[0].name} was interrupted and {left}.")
                return
            for member in members:
                self._directory.forget(member.name)
                member.saved = False
                self._fail(member, AnalysisError(f"{who} {left}, and the result is not kept."))

        with phase(CHECKS), self._repair.afterwards(blame):
            try:
                yield
            except (KeyboardInterrupt, StorageError):
                interrupted = True
                raise


@dataclass
class _Member:
    """One analysis while it is carried out; it is made when it is first asked for, since that is its own code too."""

    name: str
    make: Callable[[], Analysis[Any]]
    containment: Containment
    sites: Sequence[str] = ()
    saved: bool = False
    failed: bool = False
    _analysis: Analysis[Any] | None = None

    def made(self) -> Analysis[Any]:
        self._analysis = self._analysis or self.make()
        return self._analysis

    def consumer(self) -> ActivationAnalysis[Any]:
        analysis = self.made()
        if not isinstance(analysis, ActivationAnalysis):
            raise TypeError(f"{self.name} consumes no activations")
        return analysis


def _left(members: Sequence[_Member]) -> list[_Member]:
    return [member for member in members if not member.failed]


def _waits(entry: Mapping[str, Any]) -> bool:
    return bool(entry["status"] == "waiting")


def _sharing(analyses: Mapping[str, type[Any]]) -> Iterator[list[str]]:
    """Names of analyses in the order in which they run; those that share a pass are one group, where the first is.

    Those that read others' results, which come last, share a pass of their own.
    """
    groups: dict[bool, list[str]] = {False: [], True: []}
    for name, analysis in analyses.items():
        if _shares(analysis):
            groups[bool(analysis.consumes)].append(name)
    for name, analysis in analyses.items():
        if not _shares(analysis):
            yield [name]
        elif name == groups[bool(analysis.consumes)][0]:
            yield groups[bool(analysis.consumes)]


def _shares(analysis: type[Any]) -> bool:
    return issubclass(analysis, ActivationAnalysis)
