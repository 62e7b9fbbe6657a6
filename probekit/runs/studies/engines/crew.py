"""The workers of a study on a Ray cluster: which of them gets which cell, and what is done when one dies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from probekit.errors import ProbekitError, UsageError
from probekit.models.spec import ModelSpec
from probekit.runs.checkpoints import StopFlag
from probekit.runs.studies.cells import Cell
from probekit.runs.studies.engines.cluster import first_sentence
from probekit.runs.studies.engines.needs import Needs
from probekit.runs.studies.engines.worker import Ended, Ready, Sent, Settings, Worker, states_of
from probekit.runs.studies.work import Work, note_failure
from probekit.runs.versions import versions

# So often a cell is begun, or a worker started, before it is given up.
ATTEMPTS = 3
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_UNTIL_ASKED = 30.0
CONTROL = "control"


@dataclass
class Hand:
    """One worker: its number, Ray's handle of it, where it is, and what it is at."""

    number: int
    actor: Any
    since: float
    host: str = ""
    model: ModelSpec | None = None
    cell: Cell | None = None

    @property
    def name(self) -> str:
        return f"worker {self.number}"


class Crew:
    """At most so many workers; those who find nothing to do go, so that others can have their place on the cluster."""

    def __init__(self, ray: Any, work: Work, settings: Settings, needs: Needs, size: int) -> None:
        self._ray, self._work, self._settings, self._needs, self._size = ray, work, settings, needs, size
        self._say = work.listener.message
        self._waiting = [cell for cell in work.cells if work.waits(cell)]
        self._settled = 0
        self._hands: list[Hand] = []
        self._busy: dict[Any, Hand] = {}
        self._begun: Counter[str] = Counter()
        self._hired = self._lost_early = 0
        self._reminded = time.monotonic()
        self._stopping = StopFlag()

    def carry_out(self) -> None:
        """Every cell that waits. Raises KeyboardInterrupt after an interrupt, when what was begun is saved."""
        told = False
        with self._stopping.on_interrupt(self._say):
            try:
                self._hire()
                while self._busy:
                    if self._stopping.asked and not told:
                        told = True
                        self._stop()
                    for reference in self._ray.wait(list(self._busy), timeout=SECONDS_BETWEEN_LOOKS)[0]:
                        self._take(reference, self._busy.pop(reference))
                    if not self._waiting:
                        self._send_idle_home()
                    self._remind()
            finally:
                for hand in list(self._hands):
                    self._dismiss(hand)
        if self._stopping.asked:
            raise KeyboardInterrupt

    # --- workers -----------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """As many workers as there is work for."""
        if self._stopping.asked:
            return
        missing = min(self._size - len(self._busy), len(self._waiting) - self._on_their_way())
        actor = self._ray.remote(concurrency_groups={CONTROL: 1})(Worker)
        for _ in range(missing):
            self._hired += 1
            declared = {"num_cpus": self._needs.cpus, "num_gpus": self._needs.gpus}
            if self._needs.memory:
                declared["memory"] = self._needs.memory
            made = actor.options(max_restarts=0, max_task_retries=0, **declared).remote(self._settings)
            self._hands.append(Hand(self._hired, made, time.monotonic()))
            self._busy[made.get_ready.remote()] = self._hands[-1]

    def _on_their_way(self) -> int:
        return sum(hand.cell is None for hand in self._busy.values())

    def _dismiss(self, hand: Hand) -> None:
        self._hands.remove(hand)
        self._ray.kill(hand.actor, no_restart=True)

    def _stop(self) -> None:
        """No further cell is begun; those that are begun end with their step."""
        self._waiting.clear()
        self._send_idle_home()
        for hand in self._busy.values():
            hand.actor.stop.options(concurrency_group=CONTROL).remote()

    def _send_idle_home(self) -> None:
        """Those for whom there is no cell any more, also before they have a place. If one that has a cell dies, another
        is hired.
        """
        for reference, hand in list(self._busy.items()):
            if hand.cell is None:
                self._dismiss(hand)
                del self._busy[reference]

    def _remind(self) -> None:
        """Say now and then that a worker waits for its place."""
        now = time.monotonic()
        waiting = [hand for hand in self._busy.values() if not hand.host and now - hand.since > SECONDS_UNTIL_ASKED]
        if waiting and now - self._reminded > SECONDS_UNTIL_ASKED:
            self._reminded = now
            free = self._ray.available_resources()
            room = f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU free"
            self._say(
                f"{len(waiting)} of the workers are not ready yet: each needs {self._needs}; the cluster has {room}."
            )

    # --- what comes back ---------------------------------------------------------------------------------------------

    def _take(self, reference: Any, hand: Hand) -> None:
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # a bug, or a disk that is full
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except self._ray.exceptions.RayError as error:
            self._lose(hand, error)
            return
        if isinstance(found, Ready):
            self._check(found)
            hand.host = found.host
            self._lost_early = 0
            self._say(f"{hand.name.capitalize()} is ready on {found.host} (process {found.process}).")
        else:
            self._end(hand, found)
        self._give(hand)

    def _check(self, found: Ready) -> None:
        """Raise UsageError unless what this worker finds is what any other would find."""
        folder = self._settings.working_directory / self._settings.folder
        if not found.sees_folder:
            raise UsageError(
                f"The worker on {found.host} does not see the folder '{folder}'; give an --output on a disk that all "
                "machines share, by the same path on each."
            )
        plugins = self._work.plugins
        mine, theirs = versions(plugins) | states_of(plugins), found.versions | found.plugins
        other = [
            f"{name} ({mine.get(name, 'none')} here, {theirs.get(name, 'none')} there)"
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        ]
        if other:
            raise UsageError(
                f"The worker on {found.host} has other packages than there are here: {', '.join(other)}; install the "
                "same on every machine, so that results are the same wherever they are found."
            )

    def _end(self, hand: Hand, ended: Ended) -> None:
        cell = hand.cell
        hand.cell = None
        if ended.how == "interrupted":  # also by itself, which ends a study in one process as well
            self._stopping.asked = True
            return
        if cell is None:
            return
        self._settled += 1
        how = f"failed: {ended.sentence}" if ended.sentence else "is done."
        self._say(f"{self._work.name(cell)} on {hand.name} {how}")
        self._work.listener.progress("cells", self._settled, self._settled + self._left(), {})

    def _left(self) -> int:
        return len(self._waiting) + sum(hand.cell is not None for hand in self._busy.values())

    def _give(self, hand: Hand) -> None:
        """The next cell to a worker that has none; without one it goes."""
        while self._waiting and not self._stopping.asked:
            cell = choose(self._waiting, hand.model, [other.model for other in self._busy.values()])
            self._waiting.remove(cell)
            if not self._work.waits(cell):  # its worker died when all was written, or somebody else was at it
                self._settled += 1
                continue
            self._begun[cell.key] += 1
            hand.cell, hand.model = cell, cell.resolved.config.model
            self._say(f"{self._work.name(cell)} on {hand.name}: {cell.label}")
            sent = Sent(cell.run, cell.variables, cell.values, cell.key)
            self._busy[hand.actor.carry_out.remote(sent)] = hand
            return
        self._dismiss(hand)

    def _lose(self, hand: Hand, error: Exception) -> None:
        """Another worker for one that is gone, and its cell once more."""
        self._dismiss(hand)  # it may only be out of reach
        cell = hand.cell
        if cell is None:
            self._lost_early += 1
            if self._lost_early >= ATTEMPTS:
                raise ProbekitError(f"Workers die before they have a cell: {first_sentence(error)}")
        elif self._begun[cell.key] < ATTEMPTS:
            self._say(f"{hand.name.capitalize()} on {hand.host} died; {self._work.name(cell).lower()} is repeated.")
            self._waiting.insert(0, cell)
        else:
            sentence = (
                f"Its worker died {ATTEMPTS} times, the last on {hand.host}: killed, or out of memory. Fewer workers "
                "on a machine (--memory-per-worker), fewer restarts or a smaller precision need less; --retry-failed "
                "tries it again."
            )
            note_failure(self._work.folder, cell, sentence)
            self._settled += 1
            self._say(f"{self._work.name(cell)} failed: {sentence}")
        self._hire()


def choose(waiting: Sequence[Cell], held: ModelSpec | None, others: Sequence[ModelSpec | None]) -> Cell:
    """The cell for a worker: the first of the model that it holds, else the first of one that no other holds, else the
    first of the model that most cells wait for.
    """

    def first(fits: Callable[[Cell], bool]) -> Cell | None:
        return next((cell for cell in waiting if fits(cell)), None)

    own = first(lambda cell: cell.resolved.config.model == held)
    free = own or first(lambda cell: cell.resolved.config.model not in others)
    if free is not None:
        return free
    count = Counter(cell.resolved.config.model.model_dump_json() for cell in waiting)
    most = max(count.values())
    return next(cell for cell in waiting if count[cell.resolved.config.model.model_dump_json()] == most)
