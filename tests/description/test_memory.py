"""Estimates of memory, beside what torch's profiler counts, and beside the process's own limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch.profiler import ProfilerActivity, profile

import probekit
from probekit.description.memory import free, kept_for_gradient, weights

WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {**WIDTHS, "num_hidden_layers": 3, "vocab_size": 64, "max_position_embeddings": 512}
GPT2 = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_positions": 512, "vocab_size": 64}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **ENDS)),
    "gpt2, attention by its formula": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(**GPT2, **ENDS, attn_implementation="eager")
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "mixture of experts": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("site", ["block.0", "block.2"])
def test_what_a_gradient_keeps_is_what_the_profiler_sees_allocated_and_not_freed(name: str, site: str) -> None:
    subject = probekit.Subject(MODELS[name]().eval().requires_grad_(False))
    ids = torch.randint(1, 64, (1, 300), generator=torch.Generator().manual_seed(0))
    layer_map = subject.layer_map(site)
    embeddings = subject.embed(ids).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        activation = layer_map(embeddings)
    allocated = sum(event.self_cpu_memory_usage for event in seen.events())
    assert activation.requires_grad
    estimate = kept_for_gradient(subject, site, ids)
    assert allocated / 1.5 < estimate(300) < allocated * 1.5
    assert estimate(150) < 0.51 * estimate(300)


def test_weights_of_a_file_are_mapped_and_converted_ones_in_memory(tiny_gpt2: object) -> None:
    folder = tiny_gpt2()  # type: ignore[operator]
    read, converted = probekit.load(folder), probekit.load(folder, dtype="bfloat16")
    size = sum(parameter.nbytes for parameter in read.model.parameters())
    held = weights(read)
    assert held.in_memory + held.mapped == size
    if sys.platform.startswith("linux"):
        assert (held.in_memory, held.mapped) == (0, size)
    assert (weights(converted).in_memory, weights(converted).mapped) == (size // 2, 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process's size")
def test_what_is_free_is_within_the_limits_of_the_process() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (taken + (64 << 20), before[1]))
    try:
        assert 32 << 20 < free(torch.device("cpu")) <= 72 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert free(torch.device("cpu")) > 72 << 20
