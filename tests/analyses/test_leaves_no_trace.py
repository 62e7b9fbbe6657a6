"""After any analysis, and after one that raises at any step, the model is bit for bit what it was.

Every bundled analysis × (normal, bad input, a module that crashes at the n-th call, an interrupt at the n-th call), on
a model that probekit loaded and on a wrapped one that is in the middle of somebody's training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import probekit
from tests.analyses.recovering import few_samples

Untouched = Callable[[nn.Module], AbstractContextManager[None]]

ROOT = Path(__file__).resolve().parents[2]

OPTIONS: dict[str, dict[str, Any]] = {
    "activation-statistics": {"sites": "embedding,blocks", "largest": 3},
    "autoencoder": {
        "sites": "block.1",
        "variants": ["plain", "variational"],
        "widths": [3],
        "steps": 3,
        "seeds": 1,
        "pieces": 10,
        "length": 6,
        "invert": 1,
    },
    "clamped-walk": {"steps": 2, "walkers": 1, "noise_draws": 1, "inner": 2, "sites": "norm"},
    "control-codes": {
        "only": ["Horror", "Legal"],
        "texts": dict.fromkeys(["Horror", "Legal"], str(ROOT / "LICENSE")),
        "length": 8,
        "new_tokens": 2,
        "steps": 2,
        "seeds": 1,
        "measured": 2,
    },
    # The least of proposals, so that candidates, the gradient and the scan run; unknown positions have a bridge.
    "exact-inverter": {"sites": "block.1", "proposals": 1, "positions": [0, 2, 3, -1], "rounding": "int8"},
    "frozen-head": {"steps": 2, "batch": 2, "length": 12, "initialisations": 1, "pieces": 10},
    "gradient-inverter": {
        "steps": 4,
        "restarts": 2,
        "sites": "block.1,norm,logits",
        "record_every": 2,
        "frequencies": __file__,
    },
    "jacobian-spectrum": {"sites": "block.0,block.1", "method": "matrix-free", "iterations": 4, "probes": 2},
    "layer-similarity": {"sites": "embedding,blocks"},
    "leakage-audit": {"sites": "block.1", "precisions": ["none", "int8"], "noise": [0.0, 2.0]},
    "null-space-walk": {
        "steps": 2,
        "walkers": 1,
        "noise_draws": 1,
        "iterations": 4,
        "correction_iterations": 3,
        "sites": "block.1",
    },
    "one-word-autoencoder": {
        "texts": "random",
        "length": 4,
        "pieces": 20,
        "steps": 2,
        "batch": 4,
        "seeds": 1,
        "segment": 2,
        "training": "lora",
        "repulsion": "info-nce",
    },
    "orthogonal-walk": {"steps": 2, "walkers": 1, "noise_draws": 1, "sites": "logits", "gradient_check": True},
    "pseudo-inverse": {"sites": "embedding,blocks,logits"},
    "repetition": {
        "strategies": ["temperature", "contrastive"],
        "new_tokens": 2,
        "samples": 2,
        "text_length": 8,
        "random_draws": 2,
        "unlikelihood_steps": 1,
        "unlikelihood_batch": 2,
        "unlikelihood_pieces": 4,
    },
    "text-vae": {
        "texts": "random",
        "length": 4,
        "pieces": 20,
        "steps": 4,
        "batch": 4,
        "latent": 3,
        "importance_samples": 1,
        "beside": ["collapsed"],
        "measured": 4,
        "examples": 1,
        "injection": "embedding",  # what fails while a memory is tried is taken for a model that takes none
    },
}
BAD: dict[str, dict[str, Any]] = {
    "activation-statistics": {"sites": "block.1,nowhere"},
    "autoencoder": {"sites": "block.1,block.99"},
    "clamped-walk": {"sites": "block.1,block.99"},
    "control-codes": {"new_tokens": 64},
    "exact-inverter": {"sites": "block.1,block.99"},
    "frozen-head": {"length": 64},
    "gradient-inverter": {"sites": "block.1,block.99"},
    "jacobian-spectrum": {"sites": "block.1,nowhere"},
    "layer-similarity": {"sites": "block.1,block.99"},
    "leakage-audit": {"sites": "block.1,nowhere"},
    "null-space-walk": {"sites": "block.99"},
    "one-word-autoencoder": {"site": "block.99"},
    "orthogonal-walk": {"sites": "block.1,nowhere"},
    "pseudo-inverse": {"sites": "nowhere"},
    "repetition": {"new_tokens": 64},
    "text-vae": {"texts": "random", "site": "block.99"},
}
# What is wrong with each bad input; without an entry, its site.
SENTENCES = {
    "control-codes": "model's context is 32",
    "frozen-head": "the model's context has room for 32",
    "repetition": "the model's context is 32",
}
CALLS = (1, 2, 5, 9)
# What fails at each of these calls, and how.
FAILING: dict[str, type[BaseException]] = {
    "transformer.wte": RuntimeError,
    "transformer.h.0.attn": KeyboardInterrupt,
    "transformer.h.1": RuntimeError,
}
# Analyses that call a block less often: for each of the three prompts; or for all of them at once, after two calls for
# each of the three blocks that tell what padding does, once for a subject.
CALLED = {"activation-statistics": 7, "layer-similarity": 7, "pseudo-inverse": 3}
# These try what a copy of the model takes: what fails then is taken for what it does not take.
TRYING = ("text-vae",)
SHARE_A_PASS = ("activation-statistics", "autoencoder", "layer-similarity")


def test_every_bundled_analysis_is_here() -> None:
    bundled = {
        analysis.name
        for record in probekit.Plugins().records
        if record.distribution == "probekit"
        for analysis in record.analyses
    }
    assert bundled == set(OPTIONS) == set(BAD)


@pytest.fixture(autouse=True)
def little_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(params=["loaded", "wrapped in training"])
def subject(request: pytest.FixtureRequest, tiny_gpt2: Callable[..., Path]) -> probekit.Subject:
    folder = tiny_gpt2()
    if request.param == "loaded":
        return probekit.load(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.train()
    model.transformer.h[1].eval()  # flags of every kind, as a user's own training may leave them
    model.transformer.wpe.weight.requires_grad_(False)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    return probekit.Subject(model, AutoTokenizer.from_pretrained(folder))


def run(subject: probekit.Subject, name: str, options: dict[str, Any]) -> probekit.Result:
    analysis = probekit.Plugins().analysis(name)
    prompts = []
    for text in ("The sky is blue.", "The sea is green.", "There was a little girl."):
        ids = subject.encode(text)
        prompts.append(probekit.Prompt(text, ids, subject.tokens(ids)))
    result: probekit.Result = analysis(analysis.options_model(**options)).run(subject, prompts)
    return result


def failing_at(call: int, error: type[BaseException]) -> Callable[..., None]:
    """A hook that raises when its module is called for the n-th time."""
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise error("on purpose")

    return hook


@pytest.mark.parametrize("name", OPTIONS)
def test_normal(name: str, subject: probekit.Subject, assert_untouched: Untouched) -> None:
    with assert_untouched(subject.model):
        run(subject, name, OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_input(name: str, subject: probekit.Subject, assert_untouched: Untouched) -> None:
    with (
        assert_untouched(subject.model),
        pytest.raises(probekit.UsageError, match=SENTENCES.get(name, "There is no site")),
    ):
        run(subject, name, BAD[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_modules_that_fail_at_the_nth_call(name: str, subject: probekit.Subject, assert_untouched: Untouched) -> None:
    for place, error in FAILING.items():
        reached = 0
        for call in CALLS:
            handle = subject.model.get_submodule(place).register_forward_hook(failing_at(call, error))
            try:
                run(subject, name, OPTIONS[name])
            except error:
                reached += 1
            except probekit.UsageError as sentence:  # of a copy that was tried
                if name not in TRYING or "on purpose" not in str(sentence):
                    raise
                reached += 1
            finally:
                handle.remove()
        assert reached >= (1 if name in (*SHARE_A_PASS, *TRYING) else 2), (
            f"the analysis called {place} often enough for the failure to happen"
        )
    with assert_untouched(subject.model):
        run(subject, name, OPTIONS[name])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["crash", "interrupt"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_what_a_failure_leaves(
    name: str, call: int, error: type[BaseException], subject: probekit.Subject, assert_untouched: Untouched
) -> None:
    """The failing hook sits in place while everything is compared, so that nothing else may have changed."""
    raised: AbstractContextManager[Any] = (
        nullcontext() if call > CALLED.get(name, call) else pytest.raises(error, match="on purpose")
    )
    if name in TRYING and error is RuntimeError:
        raised = suppress(error, probekit.UsageError)
    counting = failing_at(call, error)
    armed = False

    def hook(*arguments: Any) -> None:
        if armed:
            counting(*arguments)

    handle = subject.model.get_submodule("transformer.h.0").register_forward_hook(hook)
    try:
        with assert_untouched(subject.model), raised:
            armed = True
            try:
                run(subject, name, OPTIONS[name])
            finally:
                armed = False
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["clamped-walk", "gradient-inverter", "null-space-walk", "orthogonal-walk"])
def test_an_error_in_the_backward_pass(name: str, subject: probekit.Subject, assert_untouched: Untouched) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = subject.anatomy.blocks[0].register_full_backward_hook(refuse)
    try:
        with pytest.raises(RuntimeError, match="on purpose"):
            run(subject, name, OPTIONS[name])
    finally:
        handle.remove()
    with assert_untouched(subject.model):
        run(subject, name, OPTIONS[name])


def test_an_edit_ends_with_its_block_on_every_way_out(subject: probekit.Subject, assert_untouched: Untouched) -> None:
    ids = subject.encode("The sky is blue.")
    plain = subject.capture(ids, ["logits"])["logits"]
    with assert_untouched(subject.model):
        with subject.edit("block.1", lambda activation: activation * 0):
            assert not torch.equal(subject.capture(ids, ["logits"])["logits"], plain)
        with pytest.raises(KeyboardInterrupt), subject.edit("norm", lambda activation: activation + 1):
            raise KeyboardInterrupt
        with (
            pytest.raises(probekit.UsageError, match="expected a tensor of"),
            subject.edit("block.0", lambda a: a[:, :1]),
        ):
            subject.capture(ids, ["logits"])
    assert torch.equal(subject.capture(ids, ["logits"])["logits"], plain)
