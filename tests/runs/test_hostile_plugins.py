"""Plugins that raise, hang, print, exit, leave traces or take what is not theirs: a run goes on, and its report tells.

Each stands between two well-behaved analyses, which must find what they find without it; and the model must be what it
was, by the hash of its weights.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit.runs import execute, loaded, resolve
from probekit.testing import fingerprint

GOOD = '''
import probekit


class Logits(probekit.Analysis[probekit.Options]):
    """The sum of the logits, and of the token ids."""

    name = "{name}"

    def run(self, subject, prompts):
        ids = prompts[0].input_ids
        logits = subject.capture(ids, ["logits"])["logits"]
        return probekit.Result(
            finding="Logits.", metrics={{"sum": logits.double().sum().item(), "ids": ids.sum().item()}}
        )

    def report(self, result, page):
        page.prose("The page of {name}.")


@probekit.hookimpl
def probekit_analyses():
    return [Logits]
'''

HOSTILE = '''
import probekit


class Hostile(probekit.Analysis[probekit.Options]):
    """Does harm."""

    name = "hostile"

    def run(self, subject, prompts):
        import os, signal, sys, time
        import torch
        from torch.nn.modules import module as everywhere

        block = subject.model.transformer.h[1]
        weight = block.mlp.c_fc.weight
{run}
        return probekit.Result(finding="Harm.", metrics={{"found": 1.0}})

    def report(self, result, page):
        import os, sys, time
{report}
        page.prose("The page of the hostile one.")


@probekit.hookimpl
def probekit_analyses():
    return [Hostile]
'''
PASS = "pass"

# What is done, where, and how the failure begins.
FAILING: dict[str, tuple[str, str, str]] = {
    "raises": ("raise RuntimeError('no way')", PASS, "RuntimeError: no way"),
    "exits": ("sys.exit(0)", PASS, "SystemExit: 0"),
    "is cancelled": ("import asyncio; raise asyncio.CancelledError('away')", PASS, "CancelledError: away"),
    "recurses": ("def f(): f()\nf()", PASS, "RecursionError"),
    "returns nothing": ("return None", PASS, "The analysis returned a NoneType; expected a probekit.Result."),
    "returns NaN": (
        "return probekit.Result(metrics={'figure': float('nan')})",
        PASS,
        "The metric 'figure' is nan",
    ),
    "raises in its report": (PASS, "raise KeyError('no page')", "KeyError: 'no page'. Its result is saved"),
    "exits in its report": (PASS, "sys.exit('bye')", "SystemExit: bye. Its result is saved"),
    "draws what cannot be drawn": (PASS, "page.heatmap([[1.0]], ['a', 'b'], ['c'])", "ValueError: A heatmap has"),
    "leaks a hook": (
        "block.register_forward_hook(lambda *_: None)",
        PASS,
        "It left something on the model: forward hooks of 'transformer.h.1'. It was put back, and the result is not",
    ),
    "leaks a hook and raises": (
        "block.register_forward_hook(lambda *_: None); raise ValueError('and out')",
        PASS,
        "It left something on the model: forward hooks of 'transformer.h.1'.",
    ),
    "leaks a hook on every module": (
        "everywhere.register_module_forward_hook(lambda *_: None)",
        PASS,
        "It left something on the model: hooks of every module",
    ),
    "keeps the subject and hooks it while it draws": (
        "self.kept = block",
        "self.kept.register_forward_hook(lambda *_: None)",
        "It left something on the model: forward hooks of 'transformer.h.1'.",
    ),
    "changes a weight": (
        "with torch.no_grad(): weight.add_(1)",
        PASS,
        "It left something on the model: other figures in 'transformer.h.1.mlp.c_fc.weight'. The model was",
    ),
    "changes one figure behind the back of autograd": (
        "weight.data[5, 7] = 9",
        PASS,
        "It left something on the model: other figures in 'transformer.h.1.mlp.c_fc.weight'. The model was",
    ),
    "trains the model": (
        "subject.model.requires_grad_(True)\n"
        "subject.model.train()\n"
        "loss = subject.model(input_ids=prompts[0].input_ids, labels=prompts[0].input_ids).loss\n"
        "loss.backward()\n"
        "torch.optim.SGD(subject.model.parameters(), lr=0.1).step()",
        PASS,
        "It left something on the model: the training mode of",
    ),
    "replaces a block": (
        "subject.model.transformer.h[0] = torch.nn.Identity()",
        PASS,
        "It left something on the model: other modules in 'transformer.h'. It was put back",
    ),
    "replaces a weight": (
        "block.ln_1.weight = torch.nn.Parameter(torch.zeros(32))",
        PASS,
        "It left something on the model: other parameters in 'transformer.h.1.ln_1'. It was put back",
    ),
    "replaces a forward": (
        "subject.model.lm_head.forward = lambda hidden: hidden * 0",
        PASS,
        "It left something on the model: another forward of 'lm_head'. It was put back",
    ),
}

# What does no harm that would have to be said, but must not reach the others.
ENDURED: dict[str, tuple[str, str]] = {
    "prints": ("print('a word')\nprint('and another', end='')", "print('from the page')"),
    "prints without end": ("for number in range(1000): print('line', number)", PASS),
    "writes to the process's standard output": ("os.write(1, b'raw bytes')", PASS),
    "changes the prompts": ("prompts[0].input_ids.zero_(); prompts[0].tokens.clear(); prompts.clear()", PASS),
    "covers a method of the subject": ("subject.capture = subject.encode = lambda *_: 1 / 0", PASS),
    "changes the subject's lists": ("subject.anatomy.blocks.reverse(); subject.facts['dtype'] = 'none'", PASS),
    "changes the subject": ("subject.tokenizer = subject.anatomy = None; subject.facts = {}", PASS),
    "goes elsewhere": ("os.chdir('/')", "os.chdir('/')"),
    "changes torch's defaults": (
        "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); torch.manual_seed(1)",
        PASS,
    ),
    "swallows everything": ("try:\n    1 / 0\nexcept BaseException:\n    pass", PASS),
}


def indented(code: str) -> str:
    return "\n".join("        " + line for line in code.splitlines())


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every model that a run loads, in order."""
    found: list[Any] = []
    own = loaded._live

    def live(*given: Any) -> Any:
        result = own(*given)
        assert result.subject is not None
        found.append(result.subject.model)
        return result

    monkeypatch.setattr(loaded, "_live", live)
    return found


@pytest.fixture
def begin(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> Callable[..., probekit.Run]:
    """A run of `before`, the hostile analysis and `after`."""
    for name in ("before", "after"):
        install_plugin(name, GOOD.format(name=name))
    model = tiny_gpt2()

    def run(does: str = PASS, draws: str = PASS, time_limit: float | None = None) -> probekit.Run:
        install_plugin("hostile", HOSTILE.format(run=indented(does), report=indented(draws)))
        plugins = probekit.Plugins()
        values = {
            "model": {"name": str(model)},
            "plugins": ["before", "hostile", "after"],
            "prompts": ["The sky is blue."],
        }
        return execute(resolve([("test", values)], plugins), plugins, tmp_path / "run", time_limit=time_limit)

    return run


def assert_others_unharmed(run: probekit.Run, models: list[Any], tiny_gpt2: Callable[..., Path]) -> None:
    """The others are done and have found the same, and the model that is left has the weights of the checkpoint."""
    assert run.results["before"].metrics == run.results["after"].metrics
    report = run.report_path.read_text(encoding="utf-8")
    assert "The page of before." in report
    assert "The page of after." in report
    pristine = probekit.load(str(tiny_gpt2())).model
    now, was = fingerprint(models[-1]), fingerprint(pristine)
    for what in ("weights", "logits", "training", "requires_grad", "gradients", "hooks of every module"):
        assert now[what] == was[what], what
    assert not any(now["hooks"].values())


@pytest.mark.parametrize("behaviour", FAILING)
def test_the_run_goes_on_and_the_report_tells(
    behaviour: str, begin: Callable[..., probekit.Run], models: list[Any], tiny_gpt2: Callable[..., Path]
) -> None:
    does, draws, sentence = FAILING[behaviour]
    run = begin(does, draws)
    assert run.status == "failed"
    assert set(run.failures) == {"hostile"}
    assert run.failures["hostile"].startswith(sentence)
    assert_others_unharmed(run, models, tiny_gpt2)
    report = run.report_path.read_text(encoding="utf-8")
    assert '<p class="result-name">hostile <span>failed</span>' in report
    assert "The page of the hostile one." not in report
    assert "**hostile**" in (run.path / "summary.md").read_text(encoding="utf-8")
    assert len(models) == (2 if "loaded again" in run.failures["hostile"] else 1)
    saved = (run.path / "analyses" / "hostile" / "result.json").is_file()
    assert saved == ("Its result is saved" in run.failures["hostile"])
    assert not (run.path / "analyses" / "hostile" / "DONE").exists()
    again = probekit.read_run(run.path)
    assert (again.status, again.failures) == ("failed", run.failures)


@pytest.mark.parametrize("behaviour", ENDURED)
def test_what_it_does_to_others_is_undone(
    behaviour: str,
    begin: Callable[..., probekit.Run],
    models: list[Any],
    tiny_gpt2: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state())
    run = begin(*ENDURED[behaviour])
    assert run.status == "done"
    assert_others_unharmed(run, models, tiny_gpt2)
    assert "The page of the hostile one." in run.report_path.read_text(encoding="utf-8")
    assert Path.cwd() == tmp_path
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert "a word" not in capfd.readouterr().out


def test_what_an_analysis_prints_is_kept_and_its_page_says_so(begin: Callable[..., probekit.Run]) -> None:
    run = begin(*ENDURED["prints"])
    events = [json.loads(line)["text"] for line in (run.path / "events.jsonl").read_text("utf-8").splitlines()]
    assert events == [f"hostile printed: {line}" for line in ("a word", "and another", "from the page")]
    assert "the analysis printed 3 lines" in run.report_path.read_text(encoding="utf-8")


def test_of_what_is_printed_without_end_the_first_lines_are_kept(begin: Callable[..., probekit.Run]) -> None:
    run = begin(*ENDURED["prints without end"])
    events = (run.path / "events.jsonl").read_text("utf-8").splitlines()
    assert len(events) == 21
    assert "not kept" in events[-1]
    assert "the analysis printed 1000 lines" in run.report_path.read_text(encoding="utf-8")


def test_a_loader_that_gives_the_changed_model_again_is_found_out(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    loader = """
import probekit
kept = []
@probekit.hookimpl
def probekit_load_model(spec):
    if not spec.name.startswith("kept:"):
        return None
    from transformers import AutoModelForCausalLM, AutoTokenizer
    if not kept:
        name = spec.name.removeprefix("kept:")
        kept.append((AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)))
    return kept[0]
"""
    for name in ("before", "after"):
        install_plugin(name, GOOD.format(name=name))
    install_plugin("keeping", loader)
    does = indented("with torch.no_grad(): weight.add_(1)")
    install_plugin("hostile", HOSTILE.format(run=does, report=indented(PASS)))
    run = probekit.run(
        f"kept:{tiny_gpt2()}", ["before", "hostile", "after"], ["The sky is blue."], output=tmp_path / "run"
    )
    assert set(run.results) == {"before"}
    assert "It could not be loaded again" in run.failures["hostile"]
    assert "could not be had again" in run.failures["after"]


def test_an_interrupted_analysis_keeps_its_state_whatever_it_left(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    does = """
self.context.stage("first", lambda: {"a": torch.ones(1)})
if not getattr(type(self), "interrupted", False):
    type(self).interrupted = True
    block.register_forward_hook(lambda *_: None)
    raise KeyboardInterrupt
"""
    install_plugin("hostile", HOSTILE.format(run=indented(does), report=indented(PASS)))
    with pytest.raises(KeyboardInterrupt):
        probekit.run(tiny_gpt2(), ["hostile"], ["The sky is blue."], output=tmp_path / "run")
    statuses = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["analyses"]
    assert statuses == {"hostile": {"status": "interrupted"}}
    assert any((tmp_path / "run" / "analyses" / "hostile" / "state").iterdir())
    assert "was interrupted and left something on the model" in (tmp_path / "run" / "events.jsonl").read_text("utf-8")
    assert probekit.resume(tmp_path / "run").status == "done"


def test_two_models_are_never_held_at_once(
    begin: Callable[..., probekit.Run], models: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    held: list[weakref.ref[Any]] = []
    alive: list[int] = []
    own = loaded._live

    def live(*given: Any) -> Any:
        models.clear()
        gc.collect()
        alive.append(sum(reference() is not None for reference in held))
        result = own(*given)
        assert result.subject is not None
        held.append(weakref.ref(result.subject.model))
        return result

    monkeypatch.setattr(loaded, "_live", live)
    assert "loaded again" in begin(FAILING["changes a weight"][0]).failures["hostile"]
    assert alive == [0, 0]


# --- one that hangs --------------------------------------------------------------------------------------------------

HANGING = {
    "sleeps": ("time.sleep(60)", PASS),
    "spins": ("while True: pass", PASS),
    "computes": ("while True: weight @ weight.T", PASS),
    "swallows what would end it": (
        "while True:\n    try:\n        time.sleep(60)\n    except Exception:\n        pass",
        PASS,
    ),
    "swallows everything the first time": (
        "try:\n    time.sleep(60)\nexcept BaseException:\n    pass\ntime.sleep(60)",
        PASS,
    ),
    "hangs while it draws": (PASS, "time.sleep(60)"),
}


@pytest.fixture
def somebodys_alarm() -> Iterator[list[int]]:
    """An alarm of somebody else, which must ring in the end."""
    rung: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 1.5)
    yield rung
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.parametrize("behaviour", HANGING)
def test_one_that_hangs_ends_when_its_time_is_up(
    behaviour: str,
    begin: Callable[..., probekit.Run],
    models: list[Any],
    tiny_gpt2: Callable[..., Path],
    somebodys_alarm: list[int],
) -> None:
    run = begin(*HANGING[behaviour], time_limit=0.5)
    assert set(run.failures) == {"hostile"}
    assert run.failures["hostile"].startswith("It took longer than the 0.5 s that it was given")
    assert_others_unharmed(run, models, tiny_gpt2)
    deadline = time.monotonic() + 10
    while not somebodys_alarm and time.monotonic() < deadline:
        time.sleep(0.05)
    assert somebodys_alarm


def test_without_a_time_limit_nothing_rings(begin: Callable[..., probekit.Run]) -> None:
    before = signal.getsignal(signal.SIGALRM)
    assert begin("time.sleep(0.1)").status == "done"
    assert signal.getsignal(signal.SIGALRM) is before


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> list[object]:
    given = ["--prompt", "The sky is blue.", "--output", tmp_path / "run"]
    return ["run", "--model", tiny_gpt2(), "--plugin", "before", "--plugin", "hostile", *given]


def test_the_exit_code_says_that_one_failed(
    install_plugin: Callable[..., Path], probekit_cli: Callable[..., Any], arguments: list[object]
) -> None:
    install_plugin("before", GOOD.format(name="before"))
    install_plugin("hostile", HOSTILE.format(run=indented("time.sleep(60)"), report=indented(PASS)))
    ended = probekit_cli(*arguments, "--time-limit", "0.5")
    assert ended.code == 1
    assert ended.sentence.startswith("hostile: It took longer than the 0.5 s")
    assert "before: Logits." in ended.out


def test_json_is_one_document_whatever_is_printed(
    install_plugin: Callable[..., Path], probekit_process: Callable[..., Any], arguments: list[object]
) -> None:
    install_plugin("before", GOOD.format(name="before"))
    noise = "print('noise'); os.write(1, b'raw'); os.system('echo from a child')"
    folder = install_plugin("hostile", HOSTILE.format(run=indented(noise), report=indented("print('more')")))
    ended = probekit_process(*arguments, "--json", environment={"PYTHONPATH": str(folder)})
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["status"] == "done"
    assert "raw" in ended.err
    assert "from a child" in ended.err


def test_plugins_that_did_not_load_are_named_in_the_report_of_a_run_that_did_without_them(
    install_plugin: Callable[..., Path], begin: Callable[..., probekit.Run]
) -> None:
    taken = GOOD.format(name="before")
    install_plugin("thief", taken)
    misspelt = "import probekit\n@probekit.hookimpl\ndef probekit_analysiss(): return []"
    install_plugin("misspelt", misspelt)
    install_plugin("exiting", "raise SystemExit(3)")
    run = begin()
    assert run.status == "done"
    broken = run.manifest["broken_plugins"]
    assert set(broken) == {"thief", "misspelt", "exiting"}
    report = run.report_path.read_text(encoding="utf-8")
    assert "Plugins that did not load" in report
    for sentence in ("a name that is already taken", "which is not a hook", "SystemExit"):
        assert sentence in report


def test_a_plugin_that_hangs_while_it_is_imported_is_named_when_it_is_interrupted(
    install_plugin: Callable[..., Path], probekit_process: Callable[..., Any]
) -> None:
    source = f"import os, signal, time\nos.kill(os.getpid(), {int(signal.SIGINT)})\ntime.sleep(60)"
    folder = install_plugin("endless", source)
    ended = probekit_process("plugins", environment={"PYTHONPATH": os.fspath(folder)})
    assert ended.code == 130
    assert "The plugin 'endless' was being imported; --block-plugin endless leaves it out." in ended.err
    ended = probekit_process("plugins", "--block-plugin", "endless", environment={"PYTHONPATH": os.fspath(folder)})
    assert ended.code == 0
