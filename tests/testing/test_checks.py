"""Each check finds what breaks its promise, says so in a sentence, and finds nothing else."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from probekit.testing import check_analysis, checks
from tests.testing.sources import GOOD, broken

Load = Callable[[str], type[Any]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A function that writes a module of that source, imports it and returns its class `Good`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str) -> type[Any]:
        (tmp_path / "analysis_under_test.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, "analysis_under_test", raising=False)
        importlib.invalidate_caches()
        kind: type[Any] = importlib.import_module("analysis_under_test").Good
        return kind

    return make


def failed(analysis: type[Any], **options: Any) -> dict[str, str]:
    """The checks that failed, with their sentences."""
    return {check.name: check.error for check in checks(analysis, options) if check.problems}


def test_a_good_analysis_passes(load: Load) -> None:
    analysis = load(GOOD)
    assert failed(analysis) == {}
    check_analysis(analysis)
    check_analysis(analysis, sites="block.0,norm")


LOADS = {
    "no docstring": ('"""Norms of activations."""', "", "The class Good has no docstring"),
    "no name": ('name = "good"', "", "no subclass of probekit.Analysis with a name"),
    "a name with a space": ('"good"', '"my good"', "a name has letters, digits and hyphens only"),
    "a name that is no text": ('"good"', "5", "a name has letters, digits and hyphens only"),
    "no analysis": ("(probekit.Analysis[GoodOptions])", "", "no subclass of probekit.Analysis"),
}


@pytest.mark.parametrize("case", LOADS)
def test_what_does_not_load(load: Load, case: str) -> None:
    old, new, message = LOADS[case]
    found = failed(load(GOOD.replace(old, new, 1)))
    assert list(found) == ["loads"]
    assert message in found["loads"]


def test_what_does_not_load_is_not_run(load: Load) -> None:
    found = list(checks(load(GOOD.replace('name = "good"', ""))))
    assert [check.name for check in found] == ["loads"]


OPTIONS = {
    "no default": ("n: int = Field(description='N.')", {"n": 1}, "The option 'n' has no default; give it one."),
    "no description": ("n: int = 1", {}, "The option 'n' has no description"),
    "unknown keys taken": ("model_config = {'extra': 'ignore'}", {}, "The unknown option 'no_such_option' is taken"),
    "never what was given": (
        "n: int = Field(1, description='N.')\n"
        "@__import__('pydantic').field_validator('n')\n"
        "@classmethod\n"
        "def more(cls, n): return n + 1",
        {},
        "The options written as JSON and read back are others: 'n' was 2 and is 3. "
        "The options written as TOML and read back are others",
    ),
    "no JSON": ("n: object = Field(object(), description='N.')", {}, "The options cannot be written as JSON and TOML"),
    "None within a list": (
        "n: list[int | None] = Field([1, None], description='N.')",
        {},
        "cannot be written as JSON and TOML",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_last(load: Load, case: str) -> None:
    code, given, message = OPTIONS[case]
    found = failed(load(broken("OPTIONS", code)), **given)
    assert list(found) == ["options"]
    assert message in found["options"]


def test_options_that_are_refused_are_no_judgement_of_the_rest(load: Load) -> None:
    found = failed(load(GOOD), sights="blocks")
    assert "has no option 'sights'" in found["options"]
    assert "Did you mean 'sites'?" in found["same seed, same result"]
    assert "no torch at import" not in found


FRESH = "import os, sys\nif 'pytest' not in sys.modules: "
IMPORTS = {
    "torch": ("import torch", "imports torch; import them in the functions that need them"),
    "transformers": ("import transformers", "imports transformers; import them in"),
    "prints": ("print('hello')", "prints 'hello'; a plugin prints nothing"),
    "prints past Python": (FRESH + "os.write(1, b'deep')", "prints 'deep'"),
    "exits": (FRESH + "sys.exit(3)", "in a fresh process raises SystemExit: 3."),
    "ends the process": (FRESH + "os._exit(5)", "ends the process, with exit code 5."),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_imports_that_cost(load: Load, case: str) -> None:
    code, message = IMPORTS[case]
    found = failed(load(broken("TOP", code)))
    assert list(found) == ["no torch at import"]
    assert message in found["no torch at import"]


def test_a_class_of_the_main_module_cannot_be_judged(load: Load) -> None:
    analysis = load(GOOD)
    analysis.__module__ = "__main__"
    assert failed(analysis) == {
        "no torch at import": "The analysis is defined in __main__; put it into a module, which can be imported."
    }


CHANCE = {
    "Python's generator": ("result.metrics['x'] = __import__('random').random()", "metrics 'x';"),
    "numpy's": ("result.tensors['x'] = __import__('numpy').random.rand(2)", "tensors 'x';"),
    "the time": ("result.notes.append(str(__import__('time').perf_counter()))", "results: notes;"),
    "a class that remembers": (
        "type(self).runs = getattr(type(self), 'runs', 0) + 1\nresult.tables['runs'] = [{'run': self.runs}]",
        "tables 'runs';",
    ),
}


@pytest.mark.parametrize("case", CHANCE)
def test_results_that_differ(load: Load, case: str) -> None:
    code, message = CHANCE[case]
    found = failed(load(broken("AFTER", code)))
    assert list(found) == ["same seed, same result"]
    assert "Two runs with the same seed give different results" in found["same seed, same result"]
    assert message in found["same seed, same result"]


STATE = {
    "dtype": ("torch.set_default_dtype(torch.float64)", "run() changes torch's default dtype (torch.float32 before"),
    "grad mode": ("torch.set_grad_enabled(False)", "torch's grad mode (True before, False after)"),
    "device": ("torch.set_default_device('meta')", "torch's default device (None before, meta after)"),
    "anomaly mode": ("torch.autograd.set_detect_anomaly(True)", "torch's anomaly mode"),
    "threads": ("torch.set_num_threads(torch.get_num_threads() + 1)", "torch's number of threads"),
    "deterministic": ("torch.use_deterministic_algorithms(True)", "torch's deterministic flag"),
    "precision": ("torch.set_float32_matmul_precision('medium')", "torch's precision of float32 products"),
    "folder": ("__import__('os').chdir('/')", "the working directory"),
    "environment": ("__import__('os').environ['LEFT_BEHIND'] = '1'", "the environment (LEFT_BEHIND)"),
    "standard output": ("print('so far')", "run() prints 'so far' on standard output; use self.context.log()."),
}


@pytest.mark.parametrize("case", STATE)
def test_state_that_is_changed_is_named_and_put_back(
    load: Load, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = STATE[case]
    threads = torch.get_num_threads()
    found = failed(load(broken("AFTER", code)))
    assert list(found) == ["global state"]
    assert message in found["global state"]
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), Path.cwd()) == (torch.float32, True, tmp_path)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, False)
    assert "LEFT_BEHIND" not in os.environ
    assert capsys.readouterr().out == ""


DRAWN = {
    "text that is no UTF-8": ("''.join(result.sequences['prompt'][0].tokens).encode()", "report() raised Unicode"),
    "a token as a number": ("int(result.sequences['prompt'][0].tokens[0])", "report() raised ValueError (analysis_un"),
    "exits": ("raise SystemExit(2)", "report() raised SystemExit (analysis_under_test.py, line"),
    "is cancelled": (
        "raise __import__('asyncio').CancelledError",
        "The check came to no end: CancelledError (analysis_under_test.py, line",
    ),
    "changes the result": ("result.metrics['drawn'] = 1.0", "report() changes the result"),
    "chance": ("page.prose(str(__import__('random').random()))", "draws two different pages from the same result"),
    "a block of its own": ("page.blocks.append({'type': 'html', 'html': '<b>'})", "The page cannot be rendered"),
    "a block that is no JSON": ("page.blocks.append({'type': 'prose', 'text': {1}})", "cannot be written as JSON"),
    "a block by hand": (
        "page.blocks.append({'type': 'prose', 'text': 5})",
        "The page is another one after it was written as JSON and read back",
    ),
    "a tensor of torch's": ("result.tensors['block.0.0'].cpu()", "report() raised AttributeError"),
}


@pytest.mark.parametrize("case", DRAWN)
def test_reports_that_go_wrong(load: Load, case: str) -> None:
    code, message = DRAWN[case]
    found = failed(load(broken("DRAWN", code)))
    assert list(found) == ["hostile tokens"]
    assert message in found["hostile tokens"]


@pytest.mark.parametrize("token", ["</script><script>hostile()</script>", "\x00", "\u202egnp", "' onfocus='hostile()"])
def test_a_token_that_gets_out_of_its_place(load: Load, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setattr("probekit.testing.reported.render_html", lambda _: f"<p>{token}</p>")
    found = failed(load(GOOD))
    assert list(found) == ["hostile tokens"]
    assert "stands in the report as it is" in found["hostile tokens"]


def test_what_is_in_the_data_of_a_chart_is_no_markup(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    data = '<script type="application/json" id="x">["\u202egnp"]</script>'
    monkeypatch.setattr("probekit.testing.reported.render_html", lambda _: data)
    assert failed(load(GOOD)) == {}


def test_a_result_that_cannot_be_saved(load: Load) -> None:
    found = failed(load(broken("AFTER", "result.metrics['x'] = float('nan')")))
    assert set(found) == {"same seed, same result", "hostile tokens"}
    assert "The result cannot be saved: The metric 'x' is nan" in found["hostile tokens"]


BLOCK = "subject.anatomy.blocks[0]"
TRACES = {
    "a hook": (f"{BLOCK}.register_forward_hook(lambda *_: None)", "the model's hooks", "transformer.h.0"),
    "a weight": (f"{BLOCK}.ln_1.weight.data += 1", "the model's weights", "transformer.h.0.ln_1.weight"),
    "a buffer": (
        f"{BLOCK}.register_buffer('seen', torch.zeros(1), persistent=False)",
        "the model's buffers",
        "transformer.h.0.seen",
    ),
    "the mode": ("subject.model.train(not subject.model.training)", "the model's training", "the model itself"),
    "a flag": (
        f"weight = {BLOCK}.ln_1.weight\nweight.requires_grad_(not weight.requires_grad)",
        "the model's requires_grad",
        "transformer.h.0.ln_1.weight",
    ),
}


@pytest.mark.parametrize("case", TRACES)
def test_what_is_left_on_the_model(load: Load, case: str) -> None:
    code, *messages = TRACES[case]
    found = failed(load(broken("AFTER", code)))
    assert list(found) == ["no trace on the model"]
    for message in ["After a run on a loaded model", "After a run on a model in training", *messages]:
        assert message in found["no trace on the model"]


def test_gradients_that_are_left_on_a_model_in_training(load: Load) -> None:
    code = "if subject.model.training: subject.model.lm_head.weight.grad.zero_()"
    [(name, sentences)] = failed(load(broken("AFTER", code))).items()
    assert name == "no trace on the model"
    assert sentences.startswith("After a run on a model in training, the model's gradients are not what they were")
    assert "loaded" not in sentences


def test_what_only_a_failure_leaves(load: Load) -> None:
    source = broken("BEFORE", f"handle = {BLOCK}.register_forward_hook(lambda *_: None)")
    source = source.replace("# AFTER", "handle.remove()")
    [(name, sentences)] = failed(load(source)).items()
    assert name == "no trace on the model"
    for call in (1, 2):
        assert f"After a run that failed in a module's call {call}, the model's hooks are not" in sentences
    assert "on a loaded model" not in sentences


def test_an_interrupt_that_is_swallowed(load: Load) -> None:
    source = GOOD.replace("captured = subject", "try: captured = subject").replace(
        "                for site in sites:",
        "                except BaseException: captured = {site: torch.zeros(1, 1, 1) for site in sites}\n"
        "                for site in sites:",
    )
    [(name, sentences)] = failed(load(source)).items()
    assert (name, "run() goes on after a KeyboardInterrupt" in sentences) == ("no trace on the model", True)


RUNS = ["same seed, same result", "global state", "hostile tokens", "no trace on the model"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise probekit.UsageError('It takes 12 blocks.')",
            "refused the tiny model: It takes 12 blocks. Give options",
        ),
        ("1 / 0", "run() raised ZeroDivisionError (analysis_under_test.py, line 23): division by zero."),
        ("raise SystemExit", "run() raised SystemExit (analysis_under_test.py, line 23)."),
        (
            "raise __import__('asyncio').CancelledError",
            "run() raised CancelledError (analysis_under_test.py, line 23).",
        ),
        ("return None", "run() returned a NoneType; expected a probekit.Result."),
    ],
)
def test_an_analysis_that_does_not_run_is_not_judged_but_said(load: Load, code: str, message: str) -> None:
    found = failed(load(broken("BEFORE", code)))
    assert list(found) == RUNS
    assert all(message in sentences for sentences in found.values())


def test_every_thing_that_is_wrong_is_said_at_once(load: Load) -> None:
    source = broken("AFTER", "print(1)\ntorch.set_grad_enabled(False)").replace(
        '"""Norms of activations."""', '"""N."""'
    )
    with pytest.raises(AssertionError) as raised:
        check_analysis(load(source.replace("# DRAWN", "1 / 0")))
    title, *lines = str(raised.value).splitlines()
    assert title == "good does not do what an analysis must do."
    assert [line.partition(":")[0] for line in lines] == ["global state", "global state", "hostile tokens"]


def test_an_interrupt_by_a_person_ends_the_checks(load: Load) -> None:
    with pytest.raises(KeyboardInterrupt):
        check_analysis(load(broken("BEFORE", "raise KeyboardInterrupt")))
