"""Analyses of activations: one pass for all of a run, each with batches of its own, and memory for one batch."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit.activations import Batching, LiveActivations
from probekit.runs import execute, resolve

SOURCE = '''
import probekit
from pydantic import Field


class MeanOptions(probekit.Options):
    sites: probekit.Sites = Field("block.0,block.1", description="where")


class Mean(probekit.ActivationAnalysis[MeanOptions]):
    """The mean of all activations."""

    name = "mean"

    def update(self, batch):
        import torch

        if not hasattr(self, "sums"):
            self.sums, self.rows, self.drawn = {}, 0, []
        for site in batch.sites:
            self.sums[site] = self.sums.get(site, 0) + batch.rows(site).double().sum(0)
        self.rows += len(batch.positions)
        self.drawn.append(torch.rand(()).item())
        self.spoil(batch)

    def spoil(self, batch):
        pass

    def finish(self):
        return probekit.Result(
            finding=f"{self.rows} tokens.",
            metrics={"tokens": self.rows, "drawn": sum(self.drawn)},
            tensors={site: total / self.rows for site, total in self.sums.items()},
        )

    def report(self, result, page):
        page.prose("Means.")


class Spoiling(Mean):
    """Writes into what it gets, and uses up random numbers."""

    name = "spoiling"

    def spoil(self, batch):
        import torch

        torch.rand(100)
        for site in batch.sites:
            batch[site].zero_()
        batch.input_ids.zero_()
        batch.mask.zero_()
        batch.prompts.zero_()


class Raising(Mean):
    """Raises at its second batch."""

    name = "raising"

    def update(self, batch):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 2:
            raise ValueError("enough")


class Unfinished(Mean):
    """Raises at the end."""

    name = "unfinished"

    def finish(self):
        raise SystemExit(4)


class Nowhere(Mean):
    """Asks for a site that is not there."""

    name = "nowhere"

    def sites(self):
        return "block.99"


class Never(Mean):
    """Asks for a module that a forward pass never runs."""

    name = "never"

    def sites(self):
        return "idle"


class Unmade(Mean):
    """Raises when it is made."""

    name = "unmade"

    def __init__(self, options, context=None):
        raise ValueError("not today")


class Listing(Mean):
    """Gives its sites as a list."""

    name = "listing"

    def sites(self):
        return ["block.0", "block.1"]


class Rubbish(Mean):
    """Gives no sites."""

    name = "rubbish"

    def sites(self):
        return None


class Hooking(Mean):
    """Leaves a hook on every module."""

    name = "hooking"

    def spoil(self, batch):
        from torch.nn.modules import module as everywhere

        everywhere.register_module_forward_hook(lambda *_: None)


class HookingPage(Mean):
    """Leaves a hook on every module while it draws."""

    name = "hooking-page"

    def report(self, result, page):
        from torch.nn.modules import module as everywhere

        everywhere.register_module_forward_hook(lambda *_: None)


class Reading(Mean):
    """Reads what the others found."""

    name = "reading"
    consumes = ("metrics",)

    def finish(self):
        return probekit.Result(finding=f"After {', '.join(self.context.results)}.")


class Size(probekit.Analysis[probekit.Options]):
    """Has the subject to itself."""

    name = "size"

    def run(self, subject, prompts):
        return probekit.Result(finding="A size.", metrics={"blocks": len(subject.anatomy.blocks)})

    def report(self, result, page):
        page.prose("A size.")


@probekit.hookimpl
def probekit_analyses():
    return [
        Mean, Spoiling, Raising, Unfinished, Nowhere, Never, Unmade, Listing, Rubbish, Hooking,
        HookingPage, Reading, Size
    ]
'''
# Lengths that make two batches, with padding, of what SMALL allows.
PROMPTS = ["The sky is blue.", "Once upon a time, there was a girl", "What", "A layer of the model knows"]
SMALL = 40


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    own = LiveActivations.__init__
    monkeypatch.setattr(LiveActivations, "__init__", lambda self, *given, **_: own(self, *given[:3], SMALL))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The sites of every forward pass that is captured, one entry for each."""
    found: list[list[str]] = []
    own = probekit.Subject.capture

    def capture(self: probekit.Subject, ids: torch.Tensor, sites: Any, mask: torch.Tensor | None = None) -> Any:
        found.append(list(sites))
        return own(self, ids, sites, mask)

    monkeypatch.setattr(probekit.Subject, "capture", capture)
    return found


@pytest.fixture
def begin(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> Callable[..., probekit.Run]:
    install_plugin("sharing", SOURCE)
    model = tiny_gpt2()

    def run(*analyses: str, name: str = "run", **options: Any) -> probekit.Run:
        plugins = probekit.Plugins()
        values = {"model": {"name": str(model)}, "plugins": list(analyses), "prompts": PROMPTS, "options": options}
        return execute(resolve([("test", values)], plugins), plugins, tmp_path / name)

    return run


def test_no_forward_pass_is_run_twice_for_two_analyses(
    begin: Callable[..., probekit.Run], passes: list[list[str]]
) -> None:
    alone = begin("mean", name="alone")
    once = len(passes)
    assert once == 2, "two batches"
    passes.clear()
    both = begin("mean", "size", "spoiling", name="both", spoiling={"sites": "block.1,norm"})
    assert len(passes) == once
    assert all(set(sites) == {"block.0", "block.1", "norm"} for sites in passes)
    assert both.status == "done"
    assert list(both.results) == ["mean", "spoiling", "size"]
    for name in ("block.0", "block.1"):
        assert (both.results["mean"].tensors[name] == alone.results["mean"].tensors[name]).all()


def test_what_another_analysis_does_with_its_batches_and_random_numbers_changes_nothing(
    begin: Callable[..., probekit.Run],
) -> None:
    folder = begin("mean", name="alone").path / "analyses" / "mean"
    for order in (("spoiling", "mean"), ("mean", "spoiling")):
        other = begin(*order, name="-".join(order)).path / "analyses" / "mean"
        for file in ("result.json", "tensors.safetensors"):
            assert (other / file).read_bytes() == (folder / file).read_bytes()


def test_the_figures_are_those_of_each_prompt_alone(
    begin: Callable[..., probekit.Run], tiny_gpt2: Callable[..., Path]
) -> None:
    found = begin("mean").results["mean"]
    subject = probekit.load(str(tiny_gpt2()))
    rows = [subject.capture(subject.encode(prompt), ["block.1"])["block.1"][0].double() for prompt in PROMPTS]
    expected = torch.cat(rows).mean(0)
    assert found.metrics["tokens"] == sum(map(len, rows))
    torch.testing.assert_close(torch.tensor(found.tensors["block.1"]), expected, rtol=1e-5, atol=1e-6)


def test_run_by_hand_it_finds_the_same(begin: Callable[..., probekit.Run], tiny_gpt2: Callable[..., Path]) -> None:
    found = begin("mean").results["mean"]
    subject = probekit.load(str(tiny_gpt2()))
    prompts = [probekit.Prompt(text, ids, subject.tokens(ids)) for text in PROMPTS for ids in (subject.encode(text),)]
    analysis = probekit.Plugins().analysis("mean")
    result = analysis(analysis.options_model(), probekit.Context()).run(subject, prompts)
    assert torch.equal(result.tensors["block.0"], torch.tensor(found.tensors["block.0"]))


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("raising", "ValueError: enough"),
        ("unfinished", "SystemExit: 4"),
        ("nowhere", "There is no site 'block.99'"),
        ("never", "There is no site 'idle'"),
        ("unmade", "ValueError: not today"),
        ("rubbish", "Its sites() returned None; expected a site expression"),
        ("hooking", "It left hooks of every module, which were taken off."),
        ("hooking-page", "It left hooks of every module, which were taken off. Its result is saved; only its page"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_one_that_breaks_costs_only_itself(
    broken: str, sentence: str, first: bool, begin: Callable[..., probekit.Run], passes: list[list[str]]
) -> None:
    run = begin(*((broken, "mean") if first else ("mean", broken)))
    assert run.status == "failed"
    assert set(run.failures) == {broken}
    assert sentence in run.failures[broken]
    assert run.results["mean"].metrics["tokens"] > 0
    report = run.report_path.read_text(encoding="utf-8")
    assert "Means." in report
    assert f'<p class="result-name">{broken} <span>failed</span>' in report
    assert len(passes) == 2


def test_a_site_that_never_runs_is_the_failure_of_who_asked_for_it(
    begin: Callable[..., probekit.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekit.runs import loaded

    own = loaded._live

    def with_an_idle_module(*given: Any) -> Any:
        found = own(*given)
        assert found.subject is not None
        found.subject.model.add_module("idle", torch.nn.Linear(2, 2))
        return found

    monkeypatch.setattr(loaded, "_live", with_an_idle_module)
    run = begin("never", "mean")
    assert set(run.failures) == {"never"}
    assert "'idle' never ran" in run.failures["never"]
    assert run.results["mean"].metrics["tokens"] > 0


def test_a_pass_that_breaks_is_the_failure_of_all_of_them_and_of_no_other(
    begin: Callable[..., probekit.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = probekit.Subject.capture, []

    def capture(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("the model broke down")
        return own(*given)

    monkeypatch.setattr(probekit.Subject, "capture", capture)
    run = begin("mean", "spoiling", "size")
    assert run.failures == dict.fromkeys(("mean", "spoiling"), "RuntimeError: the model broke down")
    assert list(run.results) == ["size"]


def test_when_none_wants_more_the_pass_ends(
    begin: Callable[..., probekit.Run], passes: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batching, "_fits", lambda *_: False)  # a batch for each prompt
    run = begin("raising", "nowhere")
    assert set(run.failures) == {"raising", "nowhere"}
    assert len(passes) == 2


def test_one_batch_is_held_at_a_time(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()))
    prompts = [[1 + number % 50] * 20 for number in range(60)]
    held: list[weakref.ref[torch.Tensor]] = []
    for batch in LiveActivations(subject, lambda: prompts, len(prompts)).batches(["norm"]):
        held.append(weakref.ref(batch["norm"]))
        assert sum(tensor() is not None for tensor in held) <= 2
    assert len(held) == 30


def test_an_interrupted_pass_begins_again_and_ends_the_same(
    begin: Callable[..., probekit.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begin("mean", "spoiling", name="whole").path
    own, calls = probekit.Subject.capture, []

    def capture(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(*given)

    with monkeypatch.context() as patch:
        patch.setattr(probekit.Subject, "capture", capture)
        with pytest.raises(KeyboardInterrupt):
            begin("mean", "spoiling", name="broken")
    place = whole.parent / "broken"
    statuses = json.loads((place / "run.json").read_text(encoding="utf-8"))["analyses"]
    assert statuses == {name: {"status": "interrupted"} for name in ("mean", "spoiling")}
    assert probekit.resume(place).status == "done"
    for name in ("mean", "spoiling"):
        for file in ("result.json", "tensors.safetensors", "page.json"):
            part = Path("analyses") / name / file
            assert (place / part).read_bytes() == (whole / part).read_bytes()


def test_times_of_the_pass_and_of_each_are_kept(begin: Callable[..., probekit.Run]) -> None:
    run = begin("mean", "spoiling")
    timings = json.loads((run.path / "timings.json").read_text(encoding="utf-8"))
    assert timings["activations"] > 0
    assert set(timings["analyses"]) == {"mean", "spoiling"}


def test_sites_may_be_a_list(begin: Callable[..., probekit.Run]) -> None:
    run = begin("mean", "listing")
    assert run.results["listing"].metrics == run.results["mean"].metrics


def test_one_that_reads_others_results_comes_after_them_all(
    begin: Callable[..., probekit.Run], passes: list[list[str]]
) -> None:
    run = begin("reading", "mean", "size")
    assert run.results["reading"].finding == "After mean, size."
    assert len(passes) == 4, "two batches for it, and two for the others"


def test_batches_do_not_depend_on_who_shares_the_pass(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()))
    prompts = [[1] * (5 + number % 20) for number in range(50)]
    bytes_of_5_tokens = 4 * 32 * 5 * 5

    def numbers(*sites: str) -> list[list[int]]:
        source = LiveActivations(subject, lambda: prompts, len(prompts))
        source._batch_tokens, source._batch_bytes = 2048, 8 * bytes_of_5_tokens
        return [batch.prompts.tolist() for batch in source.batches(sites)]

    assert len(numbers("block.0")) > 5
    assert numbers("block.0") == numbers("block.0", "block.1", "block.2", "norm")


def test_an_activation_analysis_with_a_run_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match=r"implements run\(\), which nobody calls"):

        class Own(probekit.ActivationAnalysis[probekit.Options]):
            name = "own"

            def run(self, subject: Any, prompts: Any) -> probekit.Result:
                return probekit.Result()
