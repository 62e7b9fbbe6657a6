"""The command line. Commands are loaded when they are called: `probekit --help` imports no plugin, and no torch."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from probekit.errors import ProbekitError, StorageError

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

COMMANDS = {
    "compare": ("compare", "Compare runs on one page."),
    "models": ("models", "Show where a model keeps its parts."),
    "plugins": ("plugins", "List the plugins, show or check one, or begin your own."),
    "record": ("record", "Record activations, to analyse them later."),
    "report": ("report", "Draw the report of a run again."),
    "run": ("run", "Run analyses on a model and write a report."),
    "runs": ("runs", "List the runs in a folder, or write an index page of them."),
    "study": ("study", "Carry out a study: many runs, and what they should show."),
    "verify": ("verify", "Check that a run is whole and says what was measured."),
}


class LazyGroup(click.Group):
    """The commands of probekit by name, then those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module = importlib.import_module(f"probekit.cli.{COMMANDS[name][0]}")
            command: click.Command = module.command
            return command
        return _plugin_command(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])


def _plugin_command(name: str) -> click.Command | None:
    """The command of that name among those of plugins; if there is none, says which plugins could not be asked."""
    from probekit.plugins import Plugins

    plugins = Plugins()
    results, failures = plugins.collect("probekit_commands")
    for commands in results:
        if not isinstance(commands, list | tuple):
            failures.append(
                f"A plugin returned {commands!r} from probekit_commands; expected a list of click commands."
            )
            continue
        for command in commands:
            if isinstance(command, click.Command) and command.name == name:
                return command
    failures += [f"The plugin '{record.name}': {record.error}" for record in plugins.records if record.error]
    for sentence in failures:
        click.echo(sentence, err=True)
    return None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *given: importlib.import_module("probekit.cli.version").print_version(*given),
    help="Show the version, and those of plugins of others, and exit.",
)
def cli() -> None:
    """What does layer k of a language model still know about its input, and which other inputs does it take for the
    same?

    Start with `probekit run`: it inverts a layer of the embedded model and prints where the report is.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code: 0 done, 1 an analysis failed, 2 usage, 3 a plugin
    failed to load, 4 the model failed to load, 5 a result could not be written, 130 interrupted, 143 terminated.
    """
    with _terminated_like_interrupted() as terminated:
        code = _exit_code(arguments)
    sys.exit(TERMINATED if code == INTERRUPTED and terminated() else code)


@contextmanager
def _terminated_like_interrupted() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM, which clusters and containers send before they kill, is taken as Ctrl-C is: what is begun is
    saved. Gives a function that says whether there was one.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield lambda: False
        return

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
            return
        # Ctrl-C is ignored, as in the background of a script.
        checkpoints = sys.modules.get("probekit.runs.checkpoints")
        if checkpoints is None or not checkpoints.ask_to_stop():
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_code(arguments: Sequence[str] | None) -> int:
    """Run the command line; every error is said in its sentence."""
    try:
        code = cli.main(None if arguments is None else list(arguments), prog_name="probekit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ProbekitError as error:
        click.echo(f"Error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        click.echo(f"Interrupted. {error.__cause__ or error}".strip(), err=True)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has gone
        _close_output()
        code = 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _close_output()
        click.echo(f"Error: What was found cannot be printed: {error.strerror}.", err=True)
        code = StorageError.exit_code
    return code if isinstance(code, int) else 0


def _close_output() -> None:
    """Nothing is printed any more, also not when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
