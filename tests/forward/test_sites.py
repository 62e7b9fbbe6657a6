"""What a module returns: reading the activation in it, and replacing it with the rest and the type kept."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from probekit.errors import UsageError
from probekit.forward.sites import read, replace

ACTIVATION, OTHER, NEW = torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.full((1, 2, 3), 7.0)


class BlockOutput(NamedTuple):
    states: torch.Tensor
    attention: torch.Tensor | None = None


Renamed = namedtuple("Renamed", ["def", "attention"], rename=True)


class OwnTuple(tuple[Any, ...]):
    pass


@pytest.mark.parametrize(
    ("output", "rest"),
    [
        ((ACTIVATION,), []),
        ((ACTIVATION, OTHER, None), [OTHER, None]),
        ([ACTIVATION, OTHER], [OTHER]),
        (BlockOutput(ACTIVATION, OTHER), [OTHER]),
        (Renamed(ACTIVATION, OTHER), [OTHER]),
        (OwnTuple((ACTIVATION, OTHER)), [OTHER]),
        (torch.return_types.max((ACTIVATION, OTHER)), [OTHER]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_item_0_is_read_and_replaced_and_the_rest_and_the_type_are_kept(output: Any, rest: list[Any]) -> None:
    assert read(output, "block.0") is ACTIVATION
    changed = replace(output, NEW)
    assert type(changed) is type(output)
    assert changed[0] is NEW
    assert len(changed) == len(rest) + 1
    assert all(kept is before for kept, before in zip(changed[1:], rest, strict=True))
    assert output[0] is ACTIVATION, "the module's own output was changed"


def test_a_tensor_is_its_own_activation() -> None:
    assert read(ACTIVATION, "norm") is ACTIVATION
    assert replace(ACTIVATION, NEW) is NEW


@pytest.mark.parametrize(
    ("output", "field"),
    [
        (CausalLMOutputWithPast(logits=ACTIVATION), "logits"),
        (CausalLMOutputWithPast(loss=torch.tensor(1.0), logits=ACTIVATION, hidden_states=(OTHER,)), "logits"),
        (BaseModelOutputWithPast(last_hidden_state=ACTIVATION, attentions=(OTHER,)), "last_hidden_state"),
    ],
    ids=["logits", "loss, logits and hidden states", "last hidden state"],
)
def test_a_model_output_keeps_its_class_and_its_other_fields(output: Any, field: str) -> None:
    before = dict(output)
    assert read(output, "logits") is ACTIVATION
    changed = replace(output, NEW)
    assert type(changed) is type(output)
    assert changed[field] is getattr(changed, field) is NEW
    assert list(changed) == list(before)
    assert all(changed[key] is value for key, value in before.items() if key != field)
    assert output[field] is ACTIVATION, "the module's own output was changed"


def test_a_plain_mapping_is_read_at_its_logits_or_its_first_item() -> None:
    assert read({"loss": OTHER, "logits": ACTIVATION}, "logits") is ACTIVATION
    changed = replace(OrderedDict(states=ACTIVATION, rest=OTHER), NEW)
    assert isinstance(changed, OrderedDict)
    assert changed["states"] is NEW
    assert changed["rest"] is OTHER


@pytest.mark.parametrize("output", [None, (), [], {}, (None, ACTIVATION), "text"], ids=repr)
def test_an_output_without_a_tensor_in_front_is_a_sentence(output: Any) -> None:
    with pytest.raises(UsageError, match=r"The site 'transformer\.drop' returns a \w+ without a tensor in front"):
        read(output, "transformer.drop")
