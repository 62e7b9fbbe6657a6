"""The gradient inverter: what it recovers, how it scores itself, and that it is the descent that its formula says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.gradient_inverter.inversion import invert, rate_at

IDS = [5, 17, 2, 40]


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=24, n_layer=2, n_head=2)
    return probekit.Subject(GPT2LMHeadModel(config).eval())


@pytest.fixture
def prompt(subject: probekit.Subject) -> probekit.Prompt:
    ids = subject.check_ids(IDS)
    return probekit.Prompt("", ids, subject.tokens(ids))


def inverted(subject: probekit.Subject, prompt: probekit.Prompt, seed: int = 0, **options: object) -> probekit.Result:
    analysis = GradientInverter(GradientInverterOptions(**options), probekit.Context(seed))  # type: ignore[arg-type]
    return analysis.run(subject, [prompt])


def test_every_token_of_an_untrained_model_comes_back(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, sites="blocks", steps=200, restarts=4)
    for site in ("block.0", "block.1"):
        assert result.metrics[f"{site}/token_accuracy_mean"] == 1.0
        assert result.metrics[f"{site}/exact_rate"] == 1.0
    assert all(row["discrete_loss"] == 0.0 for row in result.tables["restarts"])


@pytest.mark.parametrize("start", [{"start_sigma": 1.0}, {"start_mean": 0.5, "start_sigma": 0.05}])
def test_the_source_pages_own_settings_recover_an_untrained_block(
    subject: probekit.Subject, prompt: probekit.Prompt, start: dict[str, float]
) -> None:
    result = inverted(subject, prompt, optimizer="descent", learning_rate=0.05, steps=600, restarts=4, **start)
    assert result.metrics["block.0/token_accuracy_max"] == 1.0


def test_one_step_is_the_formula(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    """`e_1 = e_0 − η ∇‖O(e_0) − t‖₁`, by an independent computation with the model called on `inputs_embeds`."""
    options = GradientInverterOptions(optimizer="descent", learning_rate=0.01, steps=1, restarts=3, schedule="constant")
    found = invert(subject, prompt, "block.1", options, probekit.Context(), "x")

    generator = probekit.Context().generator("x")
    sigma = float(subject.embedding_matrix.std())
    e0 = (sigma * torch.randn(3, len(IDS), subject.width, generator=generator)).requires_grad_(True)
    model = subject.model

    def output(embeddings: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        handle = subject.anatomy.blocks[1].register_forward_hook(lambda module, inputs, out: kept.append(out))
        model(inputs_embeds=embeddings)
        handle.remove()
        return kept[0][0] if isinstance(kept[0], tuple) else kept[0]

    target = output(subject.embed(prompt.input_ids)).detach()
    loss = (output(e0) - target).abs().sum()
    (gradient,) = torch.autograd.grad(loss, e0)
    assert torch.allclose(found.embeddings, (e0 - 0.01 * gradient).detach(), atol=1e-6)
    assert torch.allclose(found.losses[0].sum(), loss.detach(), rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)], ids=lambda value: str(value)
)
def test_schedules_fall_from_the_rate_to_a_tenth(schedule: str, middle: float) -> None:
    options = GradientInverterOptions(schedule=schedule, steps=101)  # type: ignore[arg-type]
    assert rate_at(0, 2.0, options) == pytest.approx(2.0)
    assert rate_at(50, 2.0, options) == pytest.approx(2.0 * middle)
    assert rate_at(100, 2.0, options) == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_a_restart_in_a_batch_is_the_restart_alone(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    """Restarts share nothing: the second of four goes the same way when the others are not there."""
    options = GradientInverterOptions(steps=30, restarts=4)
    together = invert(subject, prompt, "block.1", options, probekit.Context(), "x")
    start = probekit.Context().generator("x")
    noise = torch.randn(4, len(IDS), subject.width, generator=start)[1:2] * subject.embedding_matrix.std()

    from probekit_plugins.gradient_inverter.inversion import _loss, descend

    layer_map = subject.layer_map("block.1")
    target = layer_map(subject.embed(prompt.input_ids)).detach()
    rate = float(subject.embedding_matrix.std()) / 4
    _, _, alone = descend(_loss(layer_map, target, "l1"), noise, rate, options, probekit.Context(), "x")
    assert torch.allclose(together.embeddings[1:2], alone, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    subject: probekit.Subject, prompt: probekit.Prompt
) -> None:
    first, again, other = (inverted(subject, prompt, seed=seed, steps=10) for seed in (3, 3, 4))
    assert torch.equal(first.tensors["0/block.0/embeddings"], again.tensors["0/block.0/embeddings"])
    assert first.tables == again.tables
    assert not torch.equal(first.tensors["0/block.0/embeddings"], other.tensors["0/block.0/embeddings"])


def test_the_selected_restart_is_chosen_without_the_prompt(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, steps=3, restarts=6)
    rows = result.tables["restarts"]
    least = min(rows, key=lambda row: float(row["discrete_loss"] or 0))
    assert [row["restart"] for row in rows if row["selected"]] == [least["restart"]]


def test_a_start_at_the_answer_is_exact_from_the_first_step(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, noise_share=0.0, target_share=1.0, steps=1, record_every=1)
    first = next(sequence for sequence in result.sequences["trajectory"] if sequence.labels["step"] == 0)
    assert first.ids == IDS
    assert result.notes, "the report says that the start held the answer"


@pytest.mark.parametrize("head", ["none", "model", "without-norm"])
def test_sites_with_and_without_head(subject: probekit.Subject, prompt: probekit.Prompt, head: str) -> None:
    """The loss is measured where it is said to be: m by an independent computation of the same truncated model."""
    options = GradientInverterOptions(steps=1, restarts=64, head=head, target_share=1.0, noise_share=0.0)  # type: ignore[arg-type]
    found = invert(subject, prompt, "block.0", options, probekit.Context(), "x")
    model = subject.model

    def output(embeddings: torch.Tensor) -> torch.Tensor:
        states = model.transformer.h[0](embeddings + model.transformer.wpe.weight[: len(IDS)])
        states = states[0] if isinstance(states, tuple) else states
        if head == "model":
            states = model.transformer.ln_f(states)
        return states if head == "none" else model.lm_head(states)

    e = subject.embed(prompt.input_ids)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        shifted = output(e + 0.05 * torch.randn(64, *e.shape[1:], generator=generator)) - output(e)
    expected = shifted.abs().sum((1, 2)).mean()
    assert float(found.shifted_losses.mean()) == pytest.approx(float(expected), rel=0.1)


def test_logits_are_a_site(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, sites="logits", steps=200, restarts=2)
    assert result.metrics["logits/token_accuracy_max"] == 1.0


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("decoder", probekit.DECODERS)
def test_losses_and_decoders(subject: probekit.Subject, prompt: probekit.Prompt, loss: str, decoder: str) -> None:
    result = inverted(subject, prompt, loss=loss, decoder=decoder, steps=250, restarts=2)
    if decoder != "unembedding":  # the head of an untrained model is no decoder of its embeddings
        assert result.metrics["block.0/token_accuracy_mean"] == 1.0


def test_a_descent_that_explodes_ends_in_a_sentence(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    with pytest.raises(probekit.AnalysisError, match="lower the learning rate"):
        inverted(subject, prompt, optimizer="descent", learning_rate=1e38, steps=60)


def test_the_context_is_not_exceeded_and_k_fits_the_vocabulary(
    subject: probekit.Subject, prompt: probekit.Prompt
) -> None:
    with pytest.raises(probekit.UsageError, match="vocabulary has 60"):
        inverted(subject, prompt, top_k=61)


@pytest.mark.data
def test_stories260k_gives_every_token_back_at_block_0(data_folder: Path, tmp_path: Path) -> None:
    """'Once upon a time, …', best of 8 restarts, and the report shows the accuracy of all of them at every block."""
    run = probekit.run(
        model=str(data_folder / "models" / "stories260k"),
        prompts=["Once upon a time, there was a little girl named Lily."],
        options={"sites": "blocks", "decoder": "nearest"},
        output=tmp_path / "run",
    )
    assert run.result.metrics["block.0/token_accuracy_selected"] == 1.0
    report = run.report_path.read_text(encoding="utf-8")
    for block in range(5):
        rows = [row for row in run.result.tables["restarts"] if row["site"] == f"block.{block}"]
        assert len(rows) == 8
        for row in rows:
            assert f"{row['token_accuracy']:.0%}, loss / m {row['loss_ratio']:.3g}" in report


@pytest.mark.data
def test_an_untrained_gpt2_gives_the_sky_is_blue_back(data_folder: Path, tmp_path: Path) -> None:
    """GPT-2 (124 M), random weights, GPT-2's tokenizer, one block: all five tokens for at least one restart."""
    folder = tmp_path / "gpt2"
    GPT2Config().save_pretrained(folder)
    for file in (data_folder / "tokenizers" / "gpt2").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    run = probekit.run(
        model={"name": str(folder), "weights": "random"},
        prompts=["The sky is blue."],
        options={"steps": 60, "restarts": 2},
        output=tmp_path / "run",
    )
    assert [row["exact"] for row in run.result.tables["restarts"]].count(True) >= 1
    assert run.result.sequences["prompt"][0].ids == [464, 6766, 318, 4171, 13]
