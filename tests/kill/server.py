"""A process that has imported everything, and forks one child for each call of the command line.

    python tests/kill/server.py

A line of JSON on standard input asks for a call, and one on standard output tells what became of it. The child is a
process of its own, which signals really reach; what it is spared are seconds of imports.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

# What changes a file system, of what Python tells its audit hooks before it happens. The last is a file that is opened;
# to write is what changes something.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open"}
WRITING = os.O_WRONLY | os.O_RDWR
POLL = 0.0005


def warm() -> None:
    """Import what a call needs."""
    import torch
    import transformers.models.gpt2.modeling_gpt2

    import probekit_plugins
    from probekit.cli import COMMANDS

    assert torch.get_num_threads() == 1, "a process with threads is not forked safely"
    assert transformers
    for module, _ in COMMANDS.values():
        importlib.import_module(f"probekit.cli.{module}")
    for found in pkgutil.walk_packages(probekit_plugins.__path__, "probekit_plugins."):
        importlib.import_module(found.name)


def watch(folder: Path, die_at: int | None, torn: bool, since: str, counted: int) -> None:
    """Count what changes files below `folder`, write the count to a descriptor, and die just before the n-th.

    `torn`: a file that is opened to be added to gets the beginning of a line first. `since`: the count begins when a
    file of this name is written.
    """
    below = f"{folder.resolve()}{os.sep}"
    number = 0
    begun = not since

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number, begun
        if event not in CHANGES or not isinstance(arguments[0], str | Path):
            return
        place = str(Path.cwd() / arguments[0])
        if not place.startswith(below) or (event == "open" and not arguments[2] & WRITING):
            return
        if not begun:
            begun = Path(place).name == since
            return
        number += 1
        os.pwrite(counted, b"%8d" % number, 0)
        if number != die_at:
            return
        if torn and event == "open" and arguments[2] & os.O_APPEND:
            with open(os.open(place, os.O_WRONLY), "r+b", closefd=True) as file:  # noqa: PTH123
                file.seek(0, os.SEEK_END)
                file.write(b'{"ev')
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def call(request: dict[str, Any]) -> None:
    """The command line, in a child."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    if request["counted"]:
        counted = os.open(request["counted"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        watch(Path(request["folder"]), request["die_at"], request["torn"], request["since"], counted)
    if request["code"]:
        exec(request["code"], {"__name__": "patch"})
    sys.argv = ["probekit", *request["arguments"]]
    importlib.import_module(request["program"]).main()


def carry_out(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, signal at the moments, and wait."""
    began = time.perf_counter()
    child = os.fork()
    if not child:
        code = 70
        try:
            call(request)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        except KeyboardInterrupt:  # before the command line had begun
            code = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    signals = list(request["signals"])
    sent = 0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.perf_counter() - began
        if done:
            return {"code": os.waitstatus_to_exitcode(status), "sent": sent, "seconds": seconds}
        if signals and seconds >= signals[0][0]:
            os.kill(child, signals.pop(0)[1])
            sent += 1
        if seconds > request["limit"]:
            os.kill(child, signal.SIGKILL)
        time.sleep(POLL)


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warm()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(carry_out(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
