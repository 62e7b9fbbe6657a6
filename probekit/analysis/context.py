"""What a run gives an analysis while it computes: progress, loops that survive, a seeded generator, a log.

A run that is interrupted, or killed, goes on where it was and ends with the same bits: an analysis wraps its pieces in
`stage`, which computes each once, and its long loops in `loop`, which saves their state from time to time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from probekit.analysis.result import Result
    from probekit.subject import Subject

# A value of progress is turned into a number, which waits for the device, at most this often.
SECONDS_BETWEEN_UPDATES = 0.1
# In a saved state, the beginning of the names of what goes with it.
CARRIED = "carried/"


class Listener(Protocol):
    """Who shows or records what happens in a run."""

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        """A loop has come so far; `values` are named figures such as the loss."""
        ...

    def message(self, text: str) -> None:
        """A line for the person who waits, and for the record."""
        ...


State = dict[str, "torch.Tensor"]


class Store(Protocol):
    """Where the state of an unfinished analysis is kept between processes."""

    def read(self, kind: str, label: str) -> State | None:
        """What was saved under this kind and label, or None."""
        ...

    def write(self, kind: str, label: str, state: State) -> None:
        """Save a state, whole or not at all, over an earlier one of the same kind and label."""
        ...

    def due(self) -> bool:
        """Whether enough time has passed since the last save."""
        ...

    def stop_asked(self) -> bool:
        """Whether somebody asked the run to stop at the end of a step."""
        ...


class Silent:
    """A listener that does nothing."""

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass


class Forgetful:
    """A store that keeps nothing, for analyses outside a run."""

    def read(self, kind: str, label: str) -> State | None:
        return None

    def write(self, kind: str, label: str, state: State) -> None:
        pass

    def due(self) -> bool:
        return False

    def stop_asked(self) -> bool:
        return False


class Carried:
    """What goes with everything that is saved, so that a resumed run has it as it was when that was saved: tensors in
    `values`, by names of one's own.
    """

    def __init__(self) -> None:
        self.values: State = {}
        self._seen: set[str] = set()

    def beside(self, state: State) -> State:
        """A state as it is saved."""
        return {**state, **{f"{CARRIED}{name}": tensor for name, tensor in self.values.items()}}

    def taken_from(self, saved: State, key: str) -> State:
        """What was saved, without what went with it, which counts from now on; but once: whoever asks again for what
        this process has computed or read goes on with what has become of it since.
        """
        if key not in self._seen:
            self._seen.add(key)
            carried = {name: tensor for name, tensor in saved.items() if name.startswith(CARRIED)}
            self.values = {name.removeprefix(CARRIED): tensor for name, tensor in carried.items()}
        return {name: tensor for name, tensor in saved.items() if not name.startswith(CARRIED)}

    def computed(self, key: str) -> None:
        """This process has computed what is saved under the key."""
        self._seen.add(key)


class Progress:
    """Progress of one loop. Call `step()` once a step; its values may be tensors, or functions of nothing, which are
    not read until they are shown.
    """

    def __init__(self, listener: Listener, store: Store, label: str, total: int, done: int = 0) -> None:
        self._listener = listener
        self._store = store
        self._label = label
        self._total = total
        self._done = done
        self._shown = 0.0

    def step(self, count: int = 1, **values: Any) -> None:
        """Some steps are done. Raises KeyboardInterrupt if the run was asked to stop."""
        self._show(count, values)
        if self._store.stop_asked():
            raise KeyboardInterrupt

    def _show(self, count: int, values: dict[str, Any]) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._shown >= SECONDS_BETWEEN_UPDATES or self._done >= self._total:
            self._shown = now
            numbers = {name: float(value() if callable(value) else value) for name, value in values.items()}
            self._listener.progress(self._label, self._done, self._total, numbers)


class Loop(Progress):
    """A loop whose state is saved: run it from `start`, with `state` as it was there (empty at step 0).

    Call `step` at the end of each step with a function that gives the state: tensors, from which the rest of the loop
    follows bit for bit. It is called when a save is due, so that a step costs nothing otherwise.
    """

    def __init__(self, listener: Listener, store: Store, label: str, key: str, total: int, carried: Carried) -> None:
        found = store.read("loop", key)
        saved = {} if found is None else carried.taken_from(found, f"loop/{key}")
        carried.computed(f"loop/{key}")
        self.start = int(saved.pop("loop_step")) if saved else 0
        self.state: State = saved
        self._key = key
        self._carried = carried
        super().__init__(listener, store, label, total, self.start)

    def end_step(self, state: Callable[[], State], **values: Any) -> None:
        """One step is done; `values` are shown. Raises KeyboardInterrupt, the state saved, if asked to stop."""
        self._show(1, values)
        stop = self._store.stop_asked()
        if stop or self._store.due():
            import torch

            saved = self._carried.beside({**state(), "loop_step": torch.tensor(self._done)})
            self._store.write("loop", self._key, saved)
        if stop:
            raise KeyboardInterrupt


class Context:
    """Given to an analysis as `self.context`. `Context()` is silent and saves nothing, for calls outside a run.

    `results` are those of the run's analyses that are done, by name, as read back from disk; an analysis that
    `consumes` runs after the others, so that they are there. `subject()` is the model where there is one: None for an
    analysis of activations that runs on a recording. `facts` are what is known of the model in both cases, as the hash
    of its weights. `carried` goes with every stage and every loop's state: what computing depends on beside its inputs.
    """

    def __init__(
        self,
        seed: int = 0,
        analysis: str = "",
        listener: Listener | None = None,
        store: Store | None = None,
        results: Mapping[str, Result] | None = None,
        subject: Callable[[], Subject | None] = lambda: None,
        facts: Mapping[str, Any] | None = None,
        carried: Carried | None = None,
    ) -> None:
        self.seed = seed
        self.carried = carried or Carried()
        # Not the subject itself: a run that loads its model anew does not hold the old one as well.
        self._subject = subject
        self.facts: dict[str, Any] = dict(facts or {})
        self.results: dict[str, Result] = dict(results or {})
        self._analysis = analysis
        self._listener: Listener = listener or Silent()
        self._store: Store = store or Forgetful()

    @property
    def subject(self) -> Subject | None:
        """The model, or None on a recording."""
        return self._subject()

    def with_subject(self, subject: Subject) -> Context:
        """The same context with this model."""
        return type(self)(
            self.seed,
            self._analysis,
            self._listener,
            self._store,
            self.results,
            lambda: subject,
            subject.facts,
            self.carried,
        )

    def generator(self, label: str = "") -> torch.Generator:
        """A CPU generator seeded by the run's seed, the analysis and a label of your choice: draw on the CPU and move.

        The same three give the same numbers on every machine and device, whatever else the run does.
        """
        import torch

        digest = hashlib.sha256(f"{self.seed}/{self._analysis}/{label}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Show a loop of `total` steps: `with context.progress("margins", 500) as progress: … progress.step()`."""
        yield Progress(self._listener, self._store, label, total)

    @contextmanager
    def loop(self, label: str, total: int, key: str | None = None) -> Iterator[Loop]:
        """Show a loop of `total` steps and save its state from time to time; see `Loop`.

        `key` names its state, and is unique within the analysis; the label by default.
        """
        yield Loop(self._listener, self._store, label, key or label, total, self.carried)

    def stage(self, key: str, compute: Callable[[], State]) -> State:
        """The tensors that `compute` returns, computed once: a resumed run reads those of a finished stage back.

        `key` is unique within the analysis. The tensors come back on the CPU, also from `compute`, so that a resumed
        run and an uninterrupted one go on with the same.
        """
        saved = self._store.read("stage", key)
        if saved is not None:
            return self.carried.taken_from(saved, f"stage/{key}")
        found = {name: tensor.detach().cpu() for name, tensor in compute().items()}
        self.carried.computed(f"stage/{key}")
        self._store.write("stage", key, self.carried.beside(found))
        return found

    def log(self, text: str) -> None:
        """A line for the person who waits, kept in the run's events."""
        self._listener.message(text)
