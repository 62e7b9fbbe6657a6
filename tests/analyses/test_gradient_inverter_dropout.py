"""The gradient inverter with dropout on: whose masks it draws, what they make of its figures, and what they leave."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probekit
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.gradient_inverter.inversion import Inversion

IDS = [5, 17, 2, 40]
Untouched = Callable[[nn.Module], AbstractContextManager[None]]


def fresh(rate: float = 0.1) -> probekit.Subject:
    """A GPT-2 as its constructor leaves it."""
    torch.manual_seed(0)
    rates = {"embd_pdrop": rate, "attn_pdrop": rate, "resid_pdrop": rate}
    return probekit.Subject(
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=16, n_embd=24, n_layer=2, n_head=2, **rates))
    )


def prompt_of(subject: probekit.Subject) -> probekit.Prompt:
    ids = subject.check_ids(IDS)
    return probekit.Prompt("", ids, subject.tokens(ids))


def inverted(subject: probekit.Subject, seed: int = 0, **options: Any) -> probekit.Result:
    chosen = {"steps": 8, "restarts": 3, "record_every": 3, "dropout": True} | options
    return GradientInverter(GradientInverterOptions(**chosen), probekit.Context(seed)).run(
        subject, [prompt_of(subject)]
    )


def inversion(subject: probekit.Subject, site: str, **options: Any) -> Inversion:
    chosen = GradientInverterOptions(**{"restarts": 3, "dropout": True} | options)
    return Inversion(subject, [prompt_of(subject)], site, None, chosen, probekit.Context())


def assert_same(one: probekit.Result, other: probekit.Result) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    assert one.tables == other.tables


@pytest.mark.parametrize("optimizer", ["adam", "descent", "lbfgs"])
def test_the_seed_of_the_run_decides_all_masks_and_no_generator_moves(optimizer: str) -> None:
    subject = fresh()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = inverted(subject, optimizer=optimizer)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    again = inverted(subject, optimizer=optimizer)
    assert_same(first, again)
    assert first.metrics == again.metrics
    other = inverted(subject, seed=1, optimizer=optimizer)
    assert not torch.equal(first.tensors["0/block.0/losses"], other.tensors["0/block.0/losses"])


def test_off_is_as_if_the_model_had_no_dropout() -> None:
    subject, without = fresh(), fresh(rate=0.0)
    assert_same(inverted(subject, dropout=False), inverted(without, dropout=False))
    on = inverted(subject)
    assert not torch.equal(on.tensors["0/block.0/losses"], inverted(without).tensors["0/block.0/losses"])


def test_one_step_is_the_formula_with_masks_of_its_own() -> None:
    """`e_1 = e_0 − η ∇‖O(e_0) − t‖₁`: the masks of t, of the step and of the loss after it are three."""
    subject = fresh()
    found = inversion(
        subject, "block.1", optimizer="descent", learning_rate=0.01, steps=1, schedule="constant", record_every=1
    )
    key = "block.1/rows 0 to 3"
    descent = found.descend()
    model, context = subject.model, probekit.Context()

    def output(embeddings: torch.Tensor, label: str) -> torch.Tensor:
        kept: list[Any] = []
        handle = subject.anatomy.blocks[1].register_forward_hook(lambda module, inputs, out: kept.append(out))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.generator(f"masks/block.1/{label}").initial_seed())
            model.train()(inputs_embeds=embeddings)
        handle.remove()
        return kept[0][0] if isinstance(kept[0], tuple) else kept[0]

    e0 = found.starts().requires_grad_(True)
    target = output(subject.embed(prompt_of(subject).input_ids), "target").detach()
    losses = (output(e0, f"{key}/step 0") - target).abs().sum((1, 2))
    (gradient,) = torch.autograd.grad(losses.sum(), e0)
    e1 = (e0 - 0.01 * gradient).detach()
    torch.testing.assert_close(descent.losses[0], losses.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(descent.recorded[-1], e1, rtol=0, atol=1e-6)
    after = (output(e1, f"{key}/step 1") - target).abs().sum((1, 2)).detach()
    torch.testing.assert_close(descent.losses[1], after, rtol=1e-5, atol=0)


def test_all_evaluations_of_a_line_search_have_the_masks_of_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that on each step the loss falls, or the row stays; with other masks for each trial it would do neither."""
    subject = fresh()
    found = inversion(subject, "block.1", optimizer="lbfgs", steps=5, record_every=1)
    seeds: list[int] = []
    seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda value: seeds.append(value) or seed(value))
    found.descend()
    by_step = list(dict.fromkeys(seeds))
    assert len(by_step) == 6, "five steps and the loss after the last"
    assert seeds == sorted(seeds, key=by_step.index)
    assert all(seeds.count(step) >= 2 for step in by_step[:-1])


def test_the_noise_ratio_is_the_loss_of_the_answer_by_dropout_alone() -> None:
    """Read against many draws with other masks, made by hand."""
    subject = fresh()
    result = inverted(subject, sites="block.1", restarts=32, steps=1)
    ratio = result.metrics["block.1/dropout_noise_ratio"]
    layer_map = subject.layer_map("block.1", dropout=True)
    answer = subject.embed(prompt_of(subject).input_ids)
    rows = answer.expand(256, -1, -1)
    found = inversion(subject, "block.1")
    target = found._target[:1]
    noise = (layer_map(rows) - target).abs().sum((1, 2)).median()
    m = (layer_map(rows + 0.05 * torch.randn(rows.shape)) - target).abs().sum((1, 2)).median()
    assert isinstance(ratio, float)
    assert ratio == pytest.approx(float(noise / m), rel=0.1)
    assert 0 < ratio < 1.2
    (note,) = (note for note in result.notes if note.startswith("Dropout was on"))
    assert f"{ratio:.2g} m at block.1" in note


def test_the_right_tokens_have_a_discrete_loss_that_is_noise() -> None:
    result = inverted(fresh(rate=0.01), steps=300, restarts=4)
    exact = [row for row in result.tables["restarts"] if row["exact"]]
    assert exact
    assert all(float(row["discrete_loss"] or 0) > 0 for row in exact)


@pytest.mark.parametrize("kind", ["Llama", "GPT-2 without rates", "before any dropout"])
def test_where_there_is_no_dropout_the_result_says_so_and_is_that_without(kind: str) -> None:
    site = "embedding" if kind == "before any dropout" else "block.1"
    if kind == "Llama":
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=60, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
        subject = probekit.Subject(LlamaForCausalLM(config))
    else:
        subject = fresh(rate=0.1 if site == "embedding" else 0.0)
    on, off = inverted(subject, sites=site), inverted(subject, sites=site, dropout=False)
    assert bool((on.tensors.pop(f"0/{site}/dropout_losses") == 0).all())
    assert_same(on, off)
    assert on.metrics.pop(f"{site}/dropout_noise_ratio") == 0.0
    assert on.metrics == off.metrics
    assert [note for note in on.notes if note not in off.notes] == [
        f"The option `dropout` changes nothing at {site}: there is none on the way there."
    ]


@pytest.mark.parametrize("loss", ["cosine", "mixed"])
def test_every_loss_tells_that_there_is_no_dropout(loss: str) -> None:
    """`1 − cos φ` of equal activations is not exactly 0."""
    result = inverted(fresh(rate=0.0), loss=loss)
    assert any(note.startswith("The option `dropout` changes nothing at block.0") for note in result.notes)


def test_sites_with_a_head_and_prompts_of_two_lengths() -> None:
    subject = fresh()
    prompts = [probekit.Prompt("", subject.check_ids(ids), subject.tokens(ids)) for ids in (IDS, [9, 33])]
    options = GradientInverterOptions(
        dropout=True, head="model", sites="blocks", steps=4, restarts=2, rows_at_once=3, target_positions=[-1]
    )
    results = [GradientInverter(options, probekit.Context()).run(subject, prompts) for _ in range(2)]
    assert_same(*results)
    assert {"block.0/dropout_noise_ratio", "block.1/dropout_noise_ratio"} <= results[0].metrics.keys()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 5, 14])
def test_nothing_is_left_on_a_model_or_a_generator_when_it_fails(
    call: int, error: type[BaseException], assert_untouched: Untouched
) -> None:
    subject = fresh()
    subject.model.transformer.h[1].eval()  # type: ignore[union-attr, operator, index]
    count = 0

    def fail(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise error("on purpose")

    with assert_untouched(subject.model):
        state = torch.get_rng_state()
        handle = subject.anatomy.blocks[0].register_forward_hook(fail)
        try:
            with pytest.raises(error, match="on purpose"):
                inverted(subject)
        finally:
            handle.remove()
        assert torch.equal(torch.get_rng_state(), state)
    with assert_untouched(subject.model):
        inverted(subject)
