"""Commands that are killed at some moment and called again until they are done, compared with one that was left alone.

`Forks` calls the command line in processes of its own; `Case` is a command with how to go on with it and what it
leaves. What is compared are all bytes but those of `timings.json`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.runs.folders import contents

ROOT = Path(__file__).resolve().parents[2]
RUN = "run"
# The module whose `main` is the command line.
PROBEKIT = "probekit.cli"
# How long a call may take before it counts as hung.
LIMIT = 240.0
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
# How a call may end that did not come to its end; 1 is click's own, of a command of its own.
INTERRUPTED = {signal.SIGKILL: {-9}, signal.SIGINT: {130, -2, 1}, signal.SIGTERM: {143, -15}}


class DidNotEndError(AssertionError):
    """A command that nothing ended did not come to its end."""


@dataclass(frozen=True)
class Ended:
    """What became of a call: its exit code (-9 if killed), how many signals it got before its end, and its seconds."""

    code: int
    sent: int
    seconds: float
    changes: int
    err: str


# For analyses whose pages show how long their parts took: what they measure is no time at all.
STILL = "import time; time.perf_counter = lambda: 0.0\n"


class Forks:
    """`Forks()` starts a server of processes; it is left with `close`."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE_"))}
        path = os.pathsep.join((str(ROOT), str(ROOT / "plugins")))
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._answer() == {"ready": True}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server of processes has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def call(
        self,
        folder: Path,
        arguments: Sequence[str],
        signals: Sequence[tuple[float, int]] = (),
        *,
        count: bool = False,
        die_at: int | None = None,
        torn: bool = False,
        since: str = "",
        code: str = "",
        program: str = PROBEKIT,
    ) -> Ended:
        """`probekit …` in this folder, with signals after so many seconds each.

        `count` counts what changes files in the folder, `die_at` kills just before the n-th of these (`torn`: with the
        beginning of a line in a file that is added to), `since` begins to count with a file of this name, and `code` is
        executed before.
        """
        beside = folder.parent / f"{folder.name} called"
        beside.mkdir(exist_ok=True)
        counted = beside / "counted" if count or die_at is not None else None
        request = {
            "folder": str(folder),
            "arguments": list(arguments),
            "signals": list(signals),
            "out": str(beside / "out"),
            "err": str(beside / "err"),
            "counted": str(counted or ""),
            "die_at": die_at,
            "torn": torn,
            "since": since,
            "code": code,
            "program": program,
            "limit": LIMIT,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        changes = int(counted.read_text() or 0) if counted else 0
        err = (beside / "err").read_text(encoding="utf-8", errors="replace")
        return Ended(**answer, changes=changes, err=err)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def next_of_run(folder: Path, arguments: Sequence[str]) -> list[str] | None:
    """How to go on with a run: from the start if it left nothing, and not at all if it is done."""
    manifest = folder / RUN / "run.json"
    if not manifest.is_file():
        return list(arguments)
    if json.loads(manifest.read_text(encoding="utf-8"))["status"] == "done":
        return None
    return ["run", "--resume", RUN, *_saving(arguments)]


def _saving(arguments: Sequence[str]) -> list[str]:
    return [word for at, word in enumerate(arguments) if "--save-every" in (word, arguments[at - 1])]


def again(folder: Path, arguments: Sequence[str]) -> list[str] | None:
    """How to go on with a recording or a study: the same once more."""
    return list(arguments)


def assert_same(found: Path, expected: Path, what: str) -> None:
    """The same files with the same bytes, times apart, and apart from a hidden folder beside them: what a run directory
    is made in before it gets its name.
    """
    one, other = (
        {name: content for name, content in contents(folder).items() if not name.startswith(".")}
        for folder in (found, expected)
    )
    assert sorted(one) == sorted(other), what
    differ = [name for name in one if one[name] != other[name]]
    assert not differ, f"{what}: {', '.join(differ)} in {found} and {expected}"


@dataclass
class Case:
    """A command line, and how the next call after a killed one is: None if there is nothing to do.

    `prepare` makes what it needs in its folder, and `code` is executed before each call.
    """

    name: str
    arguments: Sequence[str]
    next: Callable[[Path, Sequence[str]], list[str] | None] = next_of_run
    prepare: Callable[[Path], None] = lambda folder: None
    code: str = ""
    program: str = PROBEKIT
    seconds: float = 0.0
    changes: int = 0
    made: int = field(default=0, repr=False)

    def whole(self, forks: Forks, folder: Path, code: str = "", since: str = "") -> Path:
        """One that is left alone; its duration is kept. What it changes in the file system is counted."""
        self.made += 1
        folder = self._folder(folder / f"whole-{self.made}")
        ended = forks.call(folder, self.arguments, count=True, since=since, code=self.code + code, program=self.program)
        if ended.code:
            raise DidNotEndError(f"{shlex.join(self.arguments)}\n{ended.err}")
        self.seconds, self.changes = ended.seconds, ended.changes
        return folder

    def _folder(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        self.prepare(folder)
        return folder

    def killed(
        self,
        forks: Forks,
        whole: Path,
        deaths: Sequence[dict[str, Any]],
        code: str = "",
    ) -> int:
        """Die, or be interrupted, as each of `deaths` says in turn (arguments of `Forks.call`); go on to the end, and
        compare. Returns how many came before the end. `code` is executed before the first call alone.
        """
        self.made += 1
        folder = self._folder(whole.parent / f"killed-{self.made}")
        came = 0
        for death in [*deaths, {}]:
            arguments = self.next(folder, self.arguments)
            if arguments is None:
                break
            own = self.code + ("" if came else code)
            ended = forks.call(folder, arguments, **death, code=own, program=self.program)
            if ended.code == 0:
                break
            signals = {number for _, number in death.get("signals", ())} or {signal.SIGKILL}
            wanted = set().union(*(INTERRUPTED[signal.Signals(number)] for number in signals)) if death else set()
            assert ended.code in wanted, f"{self.name}, {death}: ended with {ended.code}\n{ended.err}"
            came += 1
        else:
            raise AssertionError("the last call of a command that nothing ends ended it")
        assert_same(folder, whole, f"{self.name}, {deaths}")
        shutil.rmtree(folder)
        return came
