"""An analysis under test, and one run of it as `probekit run` would make it."""

from __future__ import annotations

import io
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import Analysis, Context, Options, Result, TokenSequence, parse_options
from probekit.errors import ProbekitError
from probekit.runs.determinism import deterministic
from probekit.runs.state import standard
from probekit.testing.outcome import CannotJudgeError
from probekit.testing.process import GlobalState
from probekit.testing.tiny import prompts

if TYPE_CHECKING:
    from probekit.subject import Subject

SEED = 1
HINT = "Give options that fit it (-o KEY=VALUE, or check_analysis(…, key=value))."


@dataclass(frozen=True)
class Ran:
    """A result, what was printed while it was computed, and the global state that was changed."""

    result: Result
    printed: str
    changed: list[str]


@dataclass(frozen=True)
class Case:
    """An analysis, the values of its options that were given, and the module that it is loaded from."""

    analysis: type[Analysis[Any]]
    values: Mapping[str, Any]
    module: str

    @cached_property
    def options(self) -> Options:
        """The options: the values given, else defaults. Raises CannotJudgeError if they are refused."""
        try:
            return parse_options(self.analysis.options_model, self.values, str(self.analysis.name))
        except Exception as error:
            raise CannotJudgeError(f"The options are refused: {self.described(error)}") from None

    def run(self, subject: Subject) -> Ran:
        """Run the analysis as a run does, with the process's global state given back.

        Raises CannotJudgeError with a sentence if the analysis fails.
        """
        try:
            return self.run_unjudged(subject)
        except ProbekitError as error:
            raise CannotJudgeError(f"run() refused the tiny model: {sentence(str(error))} {HINT}") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit or asyncio.CancelledError
            raise CannotJudgeError(f"run() raised {self.described(error)}") from None

    def run_unjudged(self, subject: Subject) -> Ran:
        """The same, which raises what the analysis raises."""
        import torch

        options = self.options
        given = prompts(subject)
        context = Context(SEED, self.analysis.name, results=self._consumed(subject))
        printed = io.StringIO()
        # A run computes in torch's own settings and with its deterministic algorithms; and it seeds torch's global
        # generator for its analysis, and gives the caller's back.
        with (
            standard(),
            deterministic(),
            GlobalState() as state,
            redirect_stdout(printed),
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        ):
            torch.manual_seed(SEED)
            result = self.analysis(options, context).run(subject, given)
        if not isinstance(result, Result):
            raise CannotJudgeError(f"run() returned a {type(result).__name__}; expected a probekit.Result.")
        return Ran(result, printed.getvalue(), state.changed)

    def encode(self, result: Result) -> dict[str, bytes]:
        """The files of a result. Raises CannotJudgeError with the sentence that says why it cannot be saved."""
        try:
            return result.encode()
        except Exception as error:
            raise CannotJudgeError(f"The result cannot be saved: {self.described(error)}") from None

    def _consumed(self, subject: Subject) -> dict[str, Result]:
        """For an analysis that reads others' results, one with token sequences to read."""
        if not self.analysis.consumes:
            return {}
        sequences = [TokenSequence(prompt.input_ids[0].tolist(), prompt.tokens) for prompt in prompts(subject)]
        return {"example": Result(finding="An example.", sequences={"recovered": sequences})}

    def described(self, error: BaseException) -> str:
        """What was raised, and the line of the analysis's own module that raised it, as the end of a sentence."""
        if isinstance(error, ProbekitError | CannotJudgeError):
            return sentence(str(error))
        frames = traceback.extract_tb(error.__traceback__)
        package = self.analysis.__module__.partition(".")[0]
        own = [frame for frame in frames if package in Path(frame.filename).with_suffix("").parts]
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        text = " ".join(str(error).split())
        return sentence(f"{type(error).__name__}{place}{': ' + text if text else ''}")


def sentence(text: str) -> str:
    """One line that ends as a sentence does."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else line + "."
