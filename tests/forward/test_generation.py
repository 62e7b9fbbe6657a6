"""A subject's own continuation of a prompt: greedy and sampled, without a trace on the model or on the random state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
)

import probekit
from tests.forward.tiny import named

Untouched = Callable[[nn.Module], AbstractContextManager[None]]
IDS = torch.tensor([[5, 17, 2], [40, 9, 33]])


def gpt2(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    ends = {"bos_token_id": 59, "eos_token_id": 59}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **ends, "tie_word_embeddings": False, **settings}))


def llama() -> nn.Module:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
        bos_token_id=59,
        eos_token_id=59,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return probekit.Subject(gpt2().eval())


@pytest.mark.parametrize("make", [gpt2, llama])
def test_greedy_is_the_argmax_of_the_models_own_logits_one_token_after_another(make: Callable[[], nn.Module]) -> None:
    model: Any = make().double().eval()
    found = probekit.Subject(model).generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None)
    expected = IDS
    with torch.no_grad():
        for _ in range(8):
            logits = model(input_ids=expected, use_cache=False).logits[:, -1]
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, expected)
    assert len(set(expected[:, 3:].flatten().tolist())) > 4, "it does not say one thing again and again"


def test_a_row_that_ends_before_the_others_is_filled_up(subject: probekit.Subject) -> None:
    """The model's own end is the end, and 0 follows, where the model names no padding."""
    endless = subject.generate(IDS, max_new_tokens=6, eos_token_id=None)
    end = next(token for token in endless[0, 4:].tolist() if token not in endless[1, 3:].tolist())
    found = probekit.Subject(gpt2(eos_token_id=end).eval()).generate(IDS, max_new_tokens=6)
    length = 3 + endless[0, 3:].tolist().index(end) + 1
    assert found[0].tolist() == endless[0, :length].tolist() + [0] * (9 - length)
    assert found[1].tolist() == endless[1].tolist()


def test_sampling_is_that_of_the_seed_and_leaves_the_callers_random_state_alone(subject: probekit.Subject) -> None:
    def sampled(seed: int) -> torch.Tensor:
        return subject.generate(IDS, seed, max_new_tokens=8, do_sample=True, top_k=0)

    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = sampled(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(sampled(1), first), "whatever was drawn in between"
    assert not torch.equal(sampled(2), first)
    assert first.shape == (2, 11)
    assert torch.equal(first[:, :3], IDS)


def test_sampling_follows_the_models_distribution(subject: probekit.Subject) -> None:
    rows = 4000
    found = subject.generate(IDS[:1].expand(rows, -1), max_new_tokens=1, do_sample=True, top_k=0, temperature=0.7)
    with torch.no_grad():
        logits = subject.model(input_ids=IDS[:1]).logits[0, -1]
    expected = torch.softmax(logits / 0.7, -1)
    shares = torch.bincount(found[:, 3], minlength=60) / rows
    deviations = (shares - expected) / (expected * (1 - expected) / rows).sqrt()
    assert float(deviations.abs().max()) < 5


def test_settings_and_processors_are_heeded(subject: probekit.Subject) -> None:
    class Only(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.where(torch.arange(60) == 42, scores, -torch.inf)

    greedy = subject.generate(IDS, max_new_tokens=5)
    assert torch.equal(subject.generate(IDS, 3, max_new_tokens=5, do_sample=True, top_k=1), greedy)
    assert subject.generate(IDS, logits_processor=[Only()], max_new_tokens=3)[:, 3:].unique().tolist() == [42]
    best = subject.generate(IDS, max_new_tokens=5, num_beams=4, num_return_sequences=2)
    assert best.shape == (4, 8)


# --- no trace --------------------------------------------------------------------------------------------------------


def test_a_model_in_training_is_generated_from_in_eval_mode_and_gets_its_mode_back(
    tiny_gpt2: Callable[..., Path], assert_untouched: Untouched
) -> None:
    folder = tiny_gpt2()
    ids = torch.tensor([[1, 2, 3]])
    expected = probekit.load(str(folder)).generate(ids, max_new_tokens=6)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.train()
    model.transformer.h[1].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    model.generation_config.temperature = 0.3
    subject = probekit.Subject(model)
    settings = copy.deepcopy(model.generation_config.to_dict())
    with assert_untouched(model):
        found = subject.generate(ids, max_new_tokens=6, do_sample=False)
        subject.generate(ids, max_new_tokens=6, do_sample=True, num_beams=2)
    assert torch.equal(found, expected), "without dropout"
    assert model.generation_config.to_dict() == settings
    assert model.training
    assert not found.requires_grad


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_on_the_way_leaves_nothing_either(error: type[BaseException], assert_untouched: Untouched) -> None:
    model: Any = gpt2().train()
    subject = probekit.Subject(model)
    calls = []

    class Refuse(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 3:
                raise error("on purpose")
            return scores

    before = torch.get_rng_state()
    with assert_untouched(model), pytest.raises(error, match="on purpose"):
        subject.generate(IDS, 5, [Refuse()], max_new_tokens=6, do_sample=True)
    assert torch.equal(torch.get_rng_state(), before)


# --- what is wrong is said in a sentence -----------------------------------------------------------------------------


def test_a_model_that_cannot_generate_is_named() -> None:
    headless = GPT2Model(gpt2().config).eval()  # type: ignore[arg-type]
    with pytest.raises(probekit.UsageError, match=r"^GPT2Model does not generate text; give one that does"):
        probekit.Subject(headless).generate(IDS, max_new_tokens=2)
    network = probekit.load("fc-token,width=8,vocabulary=60", plugins=probekit.Plugins())
    with pytest.raises(probekit.UsageError, match=r"^ReferenceNetwork does not generate text"):
        network.generate(IDS, max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param({"max_new_token": 4}, "max_new_token", id="misspelt"),
        pytest.param({"nonsense": True, "max_new_tokens": 4}, "nonsense", id="unknown"),
        pytest.param({"max_new_tokens": 0}, "max_new_tokens", id="no tokens"),
        pytest.param(
            {"max_new_tokens": 2, "num_return_sequences": 3}, "num_return_sequences", id="several greedy ones"
        ),
        pytest.param({"max_new_tokens": 2, "do_sample": True, "temperature": -1.0}, "temperature", id="temperature"),
        pytest.param({"max_new_tokens": 2, "do_sample": True, "top_k": -2}, "top_k", id="top_k"),
        pytest.param({"max_new_tokens": 20}, "context", id="longer than the context"),
    ],
)
def test_a_setting_that_is_wrong_is_named(subject: probekit.Subject, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(probekit.UsageError) as raised:
        subject.generate(IDS, **settings)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["bart", "hrm_text"])
def test_an_architecture_that_fails_in_its_cache_generates_without_one(name: str) -> None:
    subject = probekit.Subject(named(name))
    ids = torch.tensor([[25, 37, 23]])
    written = subject.generate(ids, max_new_tokens=2, do_sample=False)
    assert written.shape == (1, 5)
    following = subject.capture(ids, ["logits"])["logits"][0, -1].argmax()
    assert int(written[0, 3]) == int(following)
