"""The proof that a model is untouched must itself notice every kind of trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM


def set_gradient(model: Any) -> None:
    model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)


def nudge_one_bit(model: Any) -> None:
    with torch.no_grad():
        bits = model.transformer.h[2].mlp.c_fc.bias.view(torch.int32)
        bits[0] ^= 1


TRACES: dict[str, Callable[[Any], object]] = {
    "forward hook": lambda model: model.transformer.h[1].register_forward_hook(lambda *_: None),
    "forward hook with keyword arguments": lambda model: model.lm_head.register_forward_hook(
        lambda *_: None, with_kwargs=True
    ),
    "forward pre-hook": lambda model: model.transformer.h[1].mlp.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda model: model.lm_head.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda model: model.lm_head.register_full_backward_pre_hook(lambda *_: None),
    "training mode of one module": lambda model: model.transformer.h[0].attn.train(),
    "one trainable parameter": lambda model: model.transformer.ln_f.weight.requires_grad_(True),
    "one frozen parameter": lambda model: model.transformer.wpe.weight.requires_grad_(False),
    "a gradient": set_gradient,
    "one bit of one weight": nudge_one_bit,
    "a replaced module": lambda model: setattr(model.transformer.h[0], "ln_1", torch.nn.Identity()),
    "a wrapped forward": lambda model: setattr(model.lm_head, "forward", torch.zeros_like),
}


@pytest.fixture
def model(tiny_gpt2: Callable[..., Path]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2()).eval()
    model.transformer.ln_f.requires_grad_(False)
    return model


@pytest.mark.parametrize("trace", TRACES)
def test_a_model_with_a_trace_left_on_it_is_noticed(model: Any, assert_untouched: Any, trace: str) -> None:
    with pytest.raises(AssertionError, match="the block changed the model's"), assert_untouched(model):
        TRACES[trace](model)


def test_a_trace_is_noticed_when_the_block_raised_as_well(model: Any, assert_untouched: Any) -> None:
    def leave_a_hook_and_raise() -> None:
        TRACES["forward hook"](model)
        raise ZeroDivisionError

    with pytest.raises(AssertionError, match="hooks"), assert_untouched(model):
        leave_a_hook_and_raise()


def test_hooks_that_came_off_and_flags_given_back_leave_a_model_untouched(model: Any, assert_untouched: Any) -> None:
    with assert_untouched(model):
        TRACES["forward hook"](model).remove()  # type: ignore[attr-defined]
        model.train()
        model.eval()
        model(input_ids=torch.tensor([[1, 2]]))


def test_a_tiny_model_is_its_seeds_own(tiny_gpt2: Callable[..., Path], fingerprint: Any) -> None:
    first, again, other = (
        fingerprint(AutoModelForCausalLM.from_pretrained(tiny_gpt2(n_layer=1, seed=seed)))["weights"]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_tiny_tokenizer_spells_every_byte(tiny_gpt2: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2())
    for text in ("The sky is blue.", "žluťoučký kůň 🐎\n\t", "a\u0000b"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert len(tokenizer("The sky is blue.")["input_ids"]) < len("The sky is blue.")
