"""Parameters and memory, told by a skeleton, against models that are really loaded in each precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import probekit
from probekit.description import describe
from probekit.models.loading import load_model
from probekit.models.spec import parse_spec

SIZES = {"vocab_size": 192, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "Llama": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "tie_word_embeddings": False,
    },
}


@pytest.fixture(params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = getattr(transformers, f"{request.param}Config")(**SIZES, **FAMILIES[request.param])
    with torch.random.fork_rng(devices=[]):
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def weight_bytes(model: nn.Module) -> int:
    """The bytes of the weights, with the scales of quantised ones."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes
        elif parameter.dtype == torch.int8:
            total += 4 * parameter.shape[0]
    return total


def test_parts_add_up_and_what_is_tied_counts_once(folder: Path) -> None:
    counts = describe(parse_spec(name=str(folder)))["parameters"]
    model = probekit.load(folder).model
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    parts = sum(counts[part] for part in ("embedding", "norm", "unembedding", "rest"))
    assert counts["total"] == sum(counts["blocks"]) + parts
    assert counts["embedding"] == 192 * 64
    assert counts["unembedding"] == (0 if model.config.tie_word_embeddings else 192 * 64)  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_memory_is_that_of_the_loaded_model(folder: Path, precision: str) -> None:
    told = describe(parse_spec(name=str(folder)))["memory"][precision]
    loaded = probekit.load(folder, dtype=precision)
    assert told["whole"] == weight_bytes(loaded.model)
    beyond = [*loaded.anatomy.blocks[2:], loaded.anatomy.norm]
    if not loaded.model.config.tie_word_embeddings:  # type: ignore[union-attr]
        beyond.append(loaded.anatomy.unembedding)
    assert told["block.1"] == told["whole"] - sum(weight_bytes(part) for part in beyond if part is not None)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_memory_is_that_of_the_quantised_model(folder: Path, quantization: str, dtype: str) -> None:
    facts = describe(parse_spec(name=str(folder), dtype=dtype))
    # No forward has run in it: the first one has bitsandbytes write the biases of 4-bit layers anew in fp32.
    model = load_model(parse_spec(name=str(folder), quantization=quantization, dtype=dtype)).model
    assert facts["memory"][quantization]["whole"] == weight_bytes(model)
    kinds = [type(part).__name__ for part in model.modules()]
    assert (
        f"{kinds.count('Linear8bitLt') + kinds.count('Linear4bit')} linear layers"
        in (facts["supports"]["quantization"]["why"])
    )
