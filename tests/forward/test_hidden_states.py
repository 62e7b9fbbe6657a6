"""What a subject captures at its blocks is what transformers itself gives as `hidden_states`, bit for bit."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import probekit
from tests.forward.survey import IDS
from tests.forward.tiny import make, tiny

KINDS = {
    "attention, with norms before and after, in sequence and in parallel": """
        gpt2 gptj gpt_neo gpt_neox gpt_bigcode codegen openai-gpt ctrl bloom falcon mpt opt xglm biogpt persimmon phi
        phi3 llama mistral qwen2 qwen3 gemma gemma2 gemma3_text gemma4_text olmo olmo2 cohere cohere2 granite starcoder2
        stablelm glm4 smollm3 nemotron exaone4 modernbert-decoder minicpm3 nanochat
    """,
    "experts": """
        mixtral qwen3_moe olmoe dbrx deepseek_v2 deepseek_v3 gpt_oss granitemoe jetmoe llama4_text minimax_m2
    """,
    "recurrence, alone and among attention": """
        mamba mamba2 falcon_mamba rwkv xlstm recurrent_gemma jamba bamba falcon_h1 nemotron_h zamba2 lfm2 minimax
        qwen3_next kimi_linear
    """,
    "half of an encoder-decoder, and encoders with a causal mask": """
        bart marian pegasus trocr whisper bert roberta roberta-prelayernorm electra
    """,
}
ARCHITECTURES = [name for names in KINDS.values() for name in names.split()]
# These begin their hidden states with the output of the first block, where others have what goes into it.
WITHOUT_EMBEDDINGS = {"mamba", "mamba2", "falcon_mamba", "rwkv"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_blocks_are_the_hidden_states_of_transformers(name: str) -> None:
    config_class = CONFIG_MAPPING[name]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    model = make(model_class, tiny(config_class))
    reference = copy.deepcopy(model)  # asking for hidden states leaves hooks behind
    with torch.no_grad():
        hidden_states = reference(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states

    subject = probekit.Subject(model)
    count = len(subject.anatomy.blocks)
    captured = subject.capture(IDS, [f"block.{index}" for index in range(count)])
    activations = list(captured.values())

    expected = hidden_states if name in WITHOUT_EMBEDDINGS else hidden_states[1:]
    for index, activation in enumerate(activations[:-1]):
        assert_bits(activation, expected[index], f"block {index}")
    # The last of the hidden states comes after the final norm, where a model has one.
    norm = subject.anatomy.norm
    with torch.no_grad():
        last = activations[-1] if norm is None else norm(activations[-1])
    assert_bits(last, hidden_states[-1], "the last block")

    # No comparison is left out, and none of them holds of another block.
    assert count >= 2
    assert len(hidden_states) == count + 1
    for one, other in combinations([*hidden_states[:1], *expected], 2):
        assert one is other or not torch.equal(one, other)


def assert_bits(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    assert actual.shape == expected.shape == (*IDS.shape, expected.shape[-1]), what
    assert actual.dtype == expected.dtype == torch.float32, what
    assert bool(torch.isfinite(actual).all()), what
    assert torch.equal(actual, expected), f"{what} differs by {float((actual - expected).abs().max()):.2g}"
