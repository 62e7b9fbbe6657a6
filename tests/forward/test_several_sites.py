"""Layer maps of several sites in one pass, beside one map after another; how far rows go; where nothing is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

import probekit
from probekit.testing import tiny_subject

ENDS = {"bos_token_id": 0, "eos_token_id": 0}
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {**WIDTHS, "num_hidden_layers": 4, "vocab_size": 64, "max_position_embeddings": 64}


class ReadsIds(hf.GPT2LMHeadModel):
    """A GPT-2 that adds the embeddings of its own ids once more, as token types."""

    def forward(self, input_ids: Any = None, **more: Any) -> Any:
        return super().forward(input_ids=input_ids, token_type_ids=input_ids, **more)


MODELS: dict[str, Any] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=64, **ENDS)),
    "eager": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, attn_implementation="eager")),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
    "mixture of experts": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    ),
    "reads ids": lambda: ReadsIds(hf.GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=64, **ENDS)),
}
SITES = ["block.3", "block.0", "block.2"]


def subject_of(name: str) -> probekit.Subject:
    torch.manual_seed(0)
    return probekit.Subject(MODELS[name]().eval().requires_grad_(False))


def inputs(subject: probekit.Subject, sites: list[str], rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {site: 0.3 * torch.randn(rows, 5, subject.width, generator=generator) for site in sites}


def with_gradient(activation: torch.Tensor, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (gradient,) = torch.autograd.grad(activation.sin().sum(), embeddings, retain_graph=True)
    return activation.detach(), gradient


@pytest.mark.parametrize("mask", [None, [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]], ids=["whole", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_each_map_alone(name: str, mask: list[list[int]] | None) -> None:
    subject = subject_of(name)
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]) if subject.reads_ids("block.3") else None
    beside = (ids, None if mask is None else torch.tensor(mask))
    maps = subject.layer_maps(SITES, *beside)
    for _ in range(3):
        given = {site: each.requires_grad_() for site, each in inputs(subject, SITES).items()}
        found = maps(given)
        assert list(found) == SITES
        for site, embeddings in given.items():
            together = with_gradient(found[site], embeddings)
            leaf = embeddings.detach().clone().requires_grad_()
            alone = with_gradient(subject.layer_map(site, *beside)(leaf), leaf)
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def batches_seen(subject: probekit.Subject, maps: Any, given: dict[str, torch.Tensor]) -> list[int]:
    """The rows that each block computes in a call, after others of the same shape."""
    maps(given)
    seen: list[int] = []
    hooks = [
        block.register_forward_pre_hook(lambda _module, arguments: seen.append(len(arguments[0])))
        for block in subject.anatomy.blocks
    ]
    maps(given)
    for hook in hooks:
        hook.remove()
    return seen


def test_no_row_goes_further_than_its_site_and_each_block_runs_once() -> None:
    subject = subject_of("gpt2")
    maps = subject.layer_maps(SITES)
    assert batches_seen(subject, maps, inputs(subject, SITES)) == [6, 4, 4, 2]
    assert batches_seen(subject, maps, inputs(subject, SITES, rows=1)) == [3, 2, 2, 1]


def test_sites_that_share_nothing_are_computed_one_after_another() -> None:
    """Within a block, on the embeddings, some of the sites only, or other numbers of rows at each."""
    subject = subject_of("gpt2")
    within = ["transformer.h.1.mlp", "block.1", "block.3"]
    given = inputs(subject, within)
    found = subject.layer_maps(within)(given)
    for site in within:
        torch.testing.assert_close(found[site], subject.layer_map(site)(given[site]), rtol=1e-4, atol=1e-5)
    maps = subject.layer_maps(SITES)
    some = inputs(subject, SITES[:2])
    assert batches_seen(subject, maps, some) == [2, 2, 2, 2, 2]
    uneven = {**some, "block.2": some["block.0"][:1]}
    assert torch.equal(maps(uneven)["block.2"], subject.layer_map("block.2")(uneven["block.2"]))
    assert maps({}) == {}


def test_the_same_block_under_two_names_has_its_activation_under_both() -> None:
    subject = tiny_subject()
    given = inputs(subject, ["block.-1", "block.2", "block.0"])
    given["block.-1"] = given["block.2"]
    found = subject.layer_maps(list(given))(given)
    torch.testing.assert_close(found["block.-1"], found["block.2"], rtol=1e-4, atol=1e-5)


def test_hooks_on_what_is_left_out_and_changed_weights_are_seen() -> None:
    subject = subject_of("gpt2")
    maps, given = subject.layer_maps(SITES), inputs(subject, SITES)
    before = maps(given)
    with subject.edit("block.0", lambda activation: activation * 0):
        edited = maps(given)
        assert bool((edited["block.0"] == 0).all())
        for site in SITES:
            wanted = subject.layer_map(site)(given[site])
            torch.testing.assert_close(edited[site], wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        subject.model.transformer.wpe.weight.add_(torch.randn(32))
    after = maps(given)
    for site in SITES:
        torch.testing.assert_close(after[site], subject.layer_map(site)(given[site]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[site], before[site])


def test_ids_are_needed_where_blocks_read_them_again_and_an_unknown_site_is_a_sentence() -> None:
    with pytest.raises(probekit.UsageError, match="needs `input_ids`"):
        subject_of("reads ids").layer_maps(SITES)
    with pytest.raises(probekit.UsageError, match=r"block\.9"):
        subject_of("gpt2").layer_maps(["block.9"])
