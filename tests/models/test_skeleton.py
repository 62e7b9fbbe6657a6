"""Skeletons: built from a config alone, without weights, and what their forwards know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config

from probekit.errors import ModelError, UsageError
from probekit.models.skeleton import ShapesAlone, is_skeleton, needs_values, skeleton
from probekit.models.spec import parse_spec

# 80 layers of width 10,240 with a gated feed-forward part: 103 billion parameters.
LARGE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 10240,
    "num_hidden_layers": 80,
    "num_attention_heads": 80,
    "intermediate_size": 28000,
    "max_position_embeddings": 4096,
}


def saved(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_no_weight_is_allocated_and_the_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model = skeleton(parse_spec(name=saved(tmp_path, **LARGE))).model
    assert sum(parameter.numel() for parameter in model.parameters()) > 100e9
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in model.parameters())
    assert is_skeleton(model)
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({"dtype": "bfloat16"}, {}, ("bfloat16", "bfloat16", "config")),
        ({"torch_dtype": "float16"}, {}, ("float16", "float16", "config")),
        ({"dtype": "bfloat16"}, {"dtype": "float64"}, ("float64", "bfloat16", "config")),
        ({}, {}, ("float32", "float32", "nothing")),
    ],
)
def test_its_precision_is_that_of_loading(
    tmp_path: Path, config: dict[str, str], asked: dict[str, str], expected: tuple[str, str, str]
) -> None:
    name = saved(tmp_path, model_type="gpt2", n_embd=8, n_layer=1, n_head=2, vocab_size=16, **config)
    found = skeleton(parse_spec(name=name, **asked))
    keys = ("dtype", "checkpoint_dtype", "checkpoint_dtype_said_by")
    assert tuple(found.facts[key] for key in keys) == expected
    assert {str(parameter.dtype) for parameter in found.model.parameters()} == {f"torch.{expected[0]}"}


def test_the_first_weights_say_a_precision_that_the_config_does_not(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = saved(tmp_path, model_type="gpt2", n_embd=8, n_layer=1, n_head=2, vocab_size=16)
    save_file({"positions": torch.arange(2), "weight": torch.zeros(2).half()}, tmp_path / "model.safetensors")
    facts = skeleton(parse_spec(name=name)).facts
    assert (facts["checkpoint_dtype"], facts["checkpoint_dtype_said_by"]) == ("float16", "weights")


def test_the_depth_of_the_spec_is_the_depth_of_the_skeleton(tmp_path: Path) -> None:
    name = saved(tmp_path, **LARGE)
    model: Any = skeleton(parse_spec(name=name, depth=3)).model
    assert len(model.model.layers) == 3
    with pytest.raises(UsageError, match="81 blocks"):
        skeleton(parse_spec(name=name, depth=81))


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model_type": "nope"}, "not a causal language model"),
        ({"model_type": "t5"}, "not a causal language model"),
        ({"model_type": "gpt2", "n_embd": 10, "n_head": 3}, "divisible"),
        ({"model_type": "gpt2", "n_embd": -3}, "negative dimension"),
    ],
)
def test_a_config_that_makes_no_model_is_one_sentence(tmp_path: Path, config: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelError, match=part):
        skeleton(parse_spec(name=saved(tmp_path, **config)))


class Chooses(nn.Module):
    """Looks at its ids, which are known, and at a weight's value where asked to."""

    def __init__(self, at_weights: bool) -> None:
        super().__init__()
        self.config = GPT2Config()
        self.embedding = nn.Embedding(8, 4)
        self.at_weights = at_weights

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.embedding(input_ids)
        positions = torch.arange(input_ids.shape[1], device=hidden.device)
        hidden = hidden + positions[:, None].to(hidden)
        chosen = hidden.sum() if self.at_weights else input_ids.sum() + positions.max()
        return hidden[:, 1:] if chosen > 2 else hidden


def test_a_forward_goes_the_way_that_ids_and_positions_decide() -> None:
    with torch.device("meta"):
        model = Chooses(at_weights=False)
    for first, length in ((0, 3), (1, 2)):  # the ids and the last position add up to 2, and to 3
        ids = torch.tensor([[first, 0, 0]])
        with ShapesAlone(), torch.no_grad():
            hidden = model(ids)
        assert hidden.is_meta
        assert hidden.shape == (1, length, 4)


def test_a_forward_that_weights_decide_is_known_to_need_values() -> None:
    with torch.device("meta"):
        model = Chooses(at_weights=True)
    with ShapesAlone(), pytest.raises(RuntimeError) as raised:
        model(torch.tensor([[1, 0, 0]]))
    assert needs_values(raised.value)
    assert not needs_values(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_unknown_values_are_written_into_is_unknown_too() -> None:
    unknown = torch.zeros(3, device="meta")
    with ShapesAlone():
        known = torch.zeros(4)
        assert bool((known == 0).all())
        known[:3] = unknown
        with pytest.raises(RuntimeError) as raised:
            bool((known == 0).all())
    assert needs_values(raised.value)
