"""Plugins that take what lies beside the model: its settings and tokenizer, torch's functions, a process's signals and
streams, other analyses' results and files. As in `test_hostile_plugins`, the run goes on and its report tells.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from tests.runs.test_hostile_plugins import GOOD, PASS, assert_others_unharmed, begin, models

__all__ = ["begin", "models"]

LEFT = "It left something on the model: "

# What is done, where, and how the failure begins.
FAILING: dict[str, tuple[str, str, str]] = {
    "replaces the forward of a class": (
        "type(block.mlp).forward = lambda self, hidden: hidden * 0",
        PASS,
        f"{LEFT}another forward of the class GPT2MLP",
    ),
    "replaces the call of a class": (
        "type(block.mlp).__call__ = lambda self, hidden: hidden * 0",
        PASS,
        f"{LEFT}another __call__ of the class GPT2MLP",
    ),
    "replaces the call of every module": (
        "kept = torch.nn.Module.__call__\ntorch.nn.Module.__call__ = lambda *given, **more: kept(*given, **more)",
        PASS,
        f"{LEFT}another __call__ of the class Module",
    ),
    "replaces a function of torch": (
        "import torch.nn.functional as F\nF.scaled_dot_product_attention = F.layer_norm = lambda *given, **more: 1 / 0",
        PASS,
        f"{LEFT}another layer_norm in torch.nn.functional; another scaled_dot_product_attention in torch.nn.functional",
    ),
    "replaces a method of tensors": (
        "torch.Tensor.sum = lambda *given, **more: torch.zeros(())",
        PASS,
        f"{LEFT}another sum of the class Tensor. It was put back",
    ),
    "adds tokens to the tokenizer": (
        "subject.tokenizer.add_tokens(['The', 'blue'])",
        PASS,
        f"{LEFT}another tokenizer. The model was loaded again",
    ),
    "changes how the tokenizer reads": (
        "from tokenizers import normalizers\nsubject.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()",
        PASS,
        f"{LEFT}another tokenizer. The model was loaded again",
    ),
    "unties the weights": (
        "subject.model.lm_head.weight = torch.nn.Parameter(subject.model.lm_head.weight.detach().clone())",
        PASS,
        f"{LEFT}other parameters in 'lm_head'. It was put back",
    ),
    "makes the model another dtype": ("subject.model.double()", PASS, f"{LEFT}other storage of"),
    "leaves gradients": ("weight.grad = torch.ones_like(weight)", PASS, f"{LEFT}gradients of"),
    "an error of no words": ("raise RuntimeError(5)", PASS, "RuntimeError: 5"),
    "an error that cannot be told": (
        "class Mute(Exception):\n    def __str__(self): raise ValueError\n    __repr__ = __str__\nraise Mute",
        PASS,
        "Mute",
    ),
    "an error of megabytes": ("raise RuntimeError('a' * 10**7)", PASS, "RuntimeError: aaa"),
    "an error with escapes": ("raise RuntimeError('\\x1b[2J\\udc80 bad\\x00')", PASS, "RuntimeError: \\x1b[2J"),
    "a group of errors": ("raise ExceptionGroup('several', [ValueError('a'), KeyError('b')])", PASS, "ExceptionGroup"),
    "an error of its own kind": (
        "class Own(BaseException): pass\nraise Own('mine')",
        PASS,
        "Own: mine",
    ),
    "ends what computes": ("raise GeneratorExit('over')", PASS, "GeneratorExit: over"),
    "a metric that is no figure": ("return probekit.Result(metrics={'a': object()})", PASS, ""),
    "a table that holds itself": (
        "rows = []\nrows.append({'rows': rows})\nreturn probekit.Result(tables={'a': rows})",
        PASS,
        "",
    ),
    "a file that climbs out": (
        "return probekit.Result(files={'../../../out': b'x'})",
        PASS,
        "The file '../../../out' of a result has no path below its folder",
    ),
    "a scalar of numpy": ("import numpy\nreturn probekit.Result(metrics={'a': numpy.float32(1)})", PASS, ""),
    "a NaN in a table": (
        "return probekit.Result(tables={'a': [{'b': float('inf')}]})",
        PASS,
        "The table 'a', column 'b', is inf",
    ),
    "is no result inside": ("return probekit.Result(metrics=None, tables=3)", PASS, ""),
}

ENDURED: dict[str, tuple[str, str]] = {
    "leaves a mode of torch": (
        "from torch.utils._python_dispatch import TorchDispatchMode\n"
        "class Mode(TorchDispatchMode):\n"
        "    def __torch_dispatch__(self, function, types, given=(), more=None):\n"
        "        return function(*given, **(more or {})) * 1\n"
        "Mode().__enter__()\n"
        "torch.set_autocast_enabled('cpu', True)",
        PASS,
    ),
    "changes a buffer that no checkpoint holds": (
        "subject.model.register_buffer('more', torch.zeros(2**16), persistent=False)",
        PASS,
    ),
    "changes the model's settings": (
        "subject.model.config.use_cache = False; subject.model.config.n_head = 1\n"
        "subject.model.generation_config.max_length = 1",
        PASS,
    ),
    "turns the tokenizer's padding": ("subject.tokenizer.padding_side = 'left'", PASS),
    "changes its options": ("self.options.__dict__['hostile'] = 1", PASS),
    "closes standard output": ("sys.stdout.close()", "sys.stdout.close()"),
    "prints bytes and escapes": ("sys.stdout.buffer.write(b'\\xff\\x1b[2J'); print('\\x1b]0;title\\x07')", PASS),
    "prints megabytes": ("print('a' * 10**7); sys.stdout.write('b\\n' * 10**5)", PASS),
    "puts another standard output": ("import io; sys.stdout = io.StringIO(); sys.stderr = io.StringIO()", PASS),
    "takes the alarm and the interrupt": (
        "for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)\n"
        "signal.setitimer(signal.ITIMER_REAL, 100)",
        PASS,
    ),
    "leaves a thread": ("import threading; threading.Thread(target=time.sleep, args=(3,), daemon=True).start()", PASS),
    "filters warnings": ("import warnings; warnings.simplefilter('ignore'); warnings.showwarning = None", PASS),
    "switches the garbage collector": ("import gc; gc.disable(); sys.setrecursionlimit(300)", PASS),
    "traces everything": ("sys.settrace(lambda *_: None); sys.setprofile(lambda *_: None)", PASS),
    "has names with everything in them": (
        "return probekit.Result(finding='\\x1b[2J\\udc80</script>', metrics={'a/../b\\x00': 1}, "
        "tables={'../t': [{'\\x1b': '\\udc80'}]}, notes=['</script><b>'])",
        "page.prose('</script><script>alert(1)</script>\\x00\\udc80')",
    ),
}


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """What a hostile plugin of these tests may take from the process, put back, so that one test that fails is the
    only one.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)}
    timer = signal.getitimer(signal.ITIMER_REAL)
    streams, limit = (sys.stdout, sys.stderr), sys.getrecursionlimit()
    functions = {(torch.Tensor, "sum"): torch.Tensor.sum, (torch.nn.Module, "__call__"): torch.nn.Module.__call__}
    names = ("scaled_dot_product_attention", "layer_norm")
    functions |= {(torch.nn.functional, name): getattr(torch.nn.functional, name) for name in names}  # type: ignore[misc]
    with warnings.catch_warnings():
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)
    sys.stdout, sys.stderr = streams
    sys.setrecursionlimit(limit)
    for (owner, name), function in functions.items():
        setattr(owner, name, function)


@pytest.mark.parametrize("behaviour", FAILING)
def test_the_run_goes_on_and_the_report_tells(
    behaviour: str, begin: Callable[..., probekit.Run], models: list[Any], tiny_gpt2: Callable[..., Path]
) -> None:
    does, draws, sentence = FAILING[behaviour]
    run = begin(does, draws)
    assert set(run.failures) == {"hostile"}
    assert run.failures["hostile"].startswith(sentence), run.failures
    assert len(run.failures["hostile"]) < 5000
    assert run.failures["hostile"].isprintable()
    assert_others_unharmed(run, models, tiny_gpt2)


@pytest.mark.parametrize("behaviour", ENDURED)
def test_what_it_does_to_others_is_undone(
    behaviour: str, begin: Callable[..., probekit.Run], models: list[Any], tiny_gpt2: Callable[..., Path]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)]
    streams = (sys.stdout, sys.stderr)
    run = begin(*ENDURED[behaviour])
    assert run.failures == {}
    assert (sys.stdout, sys.stderr) == streams
    assert [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)] == handlers
    assert_others_unharmed(run, models, tiny_gpt2)
    assert probekit.verify(run.path, recompute=True).problems == []


# --- every other place where a plugin has its say --------------------------------------------------------------------

LEAVING = '''
import sys
import probekit
from pydantic import model_validator


class HostileOptions(probekit.Options):
    """Its options."""

    @model_validator(mode="after")
    def check(self):
        if {stage!r} == "options":
            sys.exit(3)
        return self


def leave(stage):
    if {stage!r} == stage:
        print("on the way out")
        {does}


def draw(results, page):
    leave("joint")
    page.prose("Both.")


class Hostile(probekit.ActivationAnalysis[HostileOptions]):
    """Leaves wherever it is told to."""

    name = "hostile"
    joint_report = probekit.JointReport("Both of them", draw)

    def __init__(self, options, context=None):
        super().__init__(options, context)
        leave("init")

    def update(self, batch):
        leave("update")

    def finish(self):
        leave("finish")
        return probekit.Result(finding="Nothing.", metrics={{"found": 1.0}})

    def report(self, result, page):
        leave("report")
        page.prose("The page of the hostile one.")

    def recompute(self, result):
        leave("recompute")


class Other(Hostile):
    """The other one of its joint report."""

    name = "other"

    def __init__(self, options, context=None):
        probekit.ActivationAnalysis.__init__(self, options, context)

    def update(self, batch):
        pass

    def finish(self):
        return probekit.Result(finding="Nothing.", metrics={{"found": 1.0}})

    def report(self, result, page):
        page.prose("The page of the other.")

    def recompute(self, result):
        return None


@probekit.hookimpl
def probekit_analyses():
    return [Hostile, Other]


@probekit.hookimpl
def probekit_run_started(directory):
    leave("started")


@probekit.hookimpl
def probekit_run_finished(directory):
    leave("finished")
'''
ENDS = {"exits": "sys.exit(3)", "ends what computes": "raise GeneratorExit('over')"}


@pytest.fixture
def leaving(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> Callable[[str, str], probekit.Run]:
    """A run of a plugin that leaves at a stage, beside a good one."""

    def run(stage: str, does: str) -> probekit.Run:
        install_plugin("before", GOOD.format(name="before"))
        install_plugin("hostile", LEAVING.format(stage=stage, does=does))
        plugins = ("before", "hostile", "other")
        return probekit.run(tiny_gpt2(), plugins, "The sky is blue.", output=tmp_path / "run")

    return run


@pytest.mark.parametrize("does", ENDS)
@pytest.mark.parametrize("stage", ["init", "update", "finish", "report", "joint"])
def test_one_that_leaves_at_any_stage_is_the_only_one(
    stage: str, does: str, leaving: Callable[[str, str], probekit.Run], capfd: pytest.CaptureFixture[str]
) -> None:
    run = leaving(stage, ENDS[does])
    assert set(run.failures) == {"Both of them" if stage == "joint" else "hostile"}
    assert {"SystemExit: 3", "GeneratorExit: over"} & {
        sentence.partition(". ")[0].removesuffix(".") for sentence in run.failures.values()
    }
    assert {"before", "other"} <= set(run.results)
    assert "on the way out" not in capfd.readouterr().out
    assert probekit.verify(run.path).problems == []


@pytest.mark.parametrize("does", ENDS)
@pytest.mark.parametrize("stage", ["started", "finished"])
def test_one_that_leaves_in_a_hook_is_told_in_the_events(
    stage: str, does: str, leaving: Callable[[str, str], probekit.Run]
) -> None:
    run = leaving(stage, ENDS[does])
    assert run.status == "done"
    events = (run.path / "events.jsonl").read_text(encoding="utf-8")
    assert f"The plugin 'hostile' failed in probekit_run_{stage} (--block-plugin hostile leaves it out)" in events


@pytest.mark.parametrize("does", ENDS)
def test_one_that_leaves_while_figures_are_recomputed_is_a_problem_of_its_own(
    does: str, leaving: Callable[[str, str], probekit.Run], capfd: pytest.CaptureFixture[str]
) -> None:
    run = leaving("recompute", ENDS[does])
    assert run.status == "done"
    [problem] = probekit.verify(run.path, recompute=True).problems
    assert problem.startswith("The figures of 'hostile' cannot be computed again: ")
    assert "on the way out" not in capfd.readouterr().out


def test_options_that_exit_are_a_wrong_request(leaving: Callable[[str, str], probekit.Run]) -> None:
    with pytest.raises(probekit.ProbekitError, match="hostile"):
        leaving("options", "pass")


THIEF = '''
import probekit


class Thief(probekit.Analysis[probekit.Options]):
    """Takes what others found."""

    name = "thief"
    consumes = ("token-sequences",)

    def run(self, subject, prompts):
        for result in self.context.results.values():
            result.metrics.clear()
            result.finding = "Stolen."
            for tensor in result.tensors.values():
                tensor[...] = 0
        self.context.results.clear()
        self.context.facts.clear()
        return probekit.Result(finding="Taken.", metrics={"found": 1.0})

    def report(self, result, page):
        page.prose("Taken.")


@probekit.hookimpl
def probekit_analyses():
    return [Thief]
'''


def test_what_others_found_is_theirs(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    install_plugin("before", GOOD.format(name="before"))
    install_plugin("thief", THIEF)
    run = probekit.run(tiny_gpt2(), ["before", "thief"], "The sky is blue.", output=tmp_path / "run")
    assert run.status == "done", run.failures
    assert run.results["before"].finding == "Logits."
    assert run.results["before"].metrics == probekit.read_run(run.path).results["before"].metrics != {}
    assert probekit.verify(run.path, recompute=True).problems == []
