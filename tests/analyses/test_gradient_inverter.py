"""The gradient inverter: what it recovers, how it scores itself, and that it is the descent that its formula says."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit.report import Document, render_html
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.gradient_inverter.inversion import Inversion
from probekit_plugins.gradient_inverter.optimizers import rate_at
from probekit_plugins.gradient_inverter.summary import summarise

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


def inversion(subject: probekit.Subject, prompts: list[probekit.Prompt], site: str, **options: object) -> Inversion:
    return Inversion(subject, prompts, site, None, GradientInverterOptions(**options), probekit.Context())  # type: ignore[arg-type]


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
    found = inversion(
        subject,
        [prompt],
        "block.1",
        optimizer="descent",
        learning_rate=0.01,
        steps=1,
        restarts=3,
        schedule="constant",
        record_every=1,
    )
    descent = found.descend()
    e0 = found.starts().requires_grad_(True)
    assert float(e0.detach().std()) == pytest.approx(float(subject.embedding_matrix.std()), rel=0.15)
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
    assert torch.equal(descent.recorded[0], e0.detach())
    assert torch.allclose(descent.recorded[-1], (e0 - 0.01 * gradient).detach(), atol=1e-6)
    assert torch.allclose(descent.losses[0].sum(), loss.detach(), rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)], ids=lambda value: str(value)
)
def test_schedules_fall_from_the_rate_to_a_tenth(schedule: str, middle: float) -> None:
    options = GradientInverterOptions(schedule=schedule, steps=101)  # type: ignore[arg-type]
    assert rate_at(0, 2.0, options) == pytest.approx(2.0)
    assert rate_at(50, 2.0, options) == pytest.approx(2.0 * middle)
    assert rate_at(100, 2.0, options) == pytest.approx(2.0 if schedule == "constant" else 0.2)


@pytest.mark.parametrize("optimizer", ["adam", "descent"])
def test_a_row_of_a_batch_is_the_row_alone(subject: probekit.Subject, optimizer: str) -> None:
    """Rows share nothing: prompts of two lengths × three restarts together, and one row at a time."""
    prompts = [probekit.Prompt("", subject.check_ids(ids), subject.tokens(ids)) for ids in (IDS, [9, 33])]
    chosen: dict[str, object] = {"steps": 12, "restarts": 3, "optimizer": optimizer, "learning_rate": 0.01}
    together = inversion(subject, prompts, "block.1", **chosen).descend()
    alone = inversion(subject, prompts, "block.1", **chosen, rows_at_once=1).descend()
    assert together.losses.shape == alone.losses.shape == (13, 6)
    assert torch.allclose(together.losses, alone.losses, rtol=1e-4)
    assert torch.allclose(together.recorded, alone.recorded, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "descent", "lbfgs"])
def test_no_row_hears_of_another(
    subject: probekit.Subject, prompt: probekit.Prompt, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start for one row, and the others keep their bits: through line searches and histories too."""
    one = inversion(subject, [prompt], "block.1", steps=15, restarts=4, optimizer=optimizer)
    other = inversion(subject, [prompt], "block.1", steps=15, restarts=4, optimizer=optimizer)
    starts = other.starts()
    starts[2] *= -3
    monkeypatch.setattr(other, "starts", lambda chosen: starts[chosen])
    first, second = one.descend().recorded[-1], other.descend().recorded[-1]
    assert not torch.equal(first[2], second[2])
    for row in (0, 1, 3):
        assert torch.equal(first[row], second[row])


def test_a_prompt_goes_the_same_way_whatever_stands_beside_it(subject: probekit.Subject) -> None:
    prompts = [probekit.Prompt("", subject.check_ids(ids), subject.tokens(ids)) for ids in ([9, 33], IDS)]
    beside = inversion(subject, prompts, "block.1", steps=12, restarts=3).descend()
    alone = inversion(subject, prompts[:1], "block.1", steps=12, restarts=3).descend()
    assert torch.allclose(beside.losses[:, :3], alone.losses, rtol=1e-4)


def test_rows_that_are_conditioned_on_ids_keep_their_own(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks read the token ids again, part of a batch is given the ids of its own rows, whatever its size."""
    prompts = [probekit.Prompt("", subject.check_ids(ids), subject.tokens(ids)) for ids in (IDS, [9, 33])]
    plain = inversion(subject, prompts, "block.1", steps=4, restarts=3, rows_at_once=2)
    monkeypatch.setattr(subject, "reads_ids", lambda site: True)
    conditioned = inversion(subject, prompts, "block.1", steps=4, restarts=3, rows_at_once=2)
    assert torch.equal(conditioned.descend().recorded, plain.descend().recorded)
    assert torch.equal(conditioned.shifted_losses(0.05)[1], plain.shifted_losses(0.05)[1])


def test_out_of_memory_halves_the_batch(
    subject: probekit.Subject, prompt: probekit.Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = inversion(subject, [prompt], "block.0", steps=5, restarts=8).descend()
    descend_rows = Inversion.descend_rows
    tried = []

    def small(self: Inversion, chosen: slice, key: str) -> object:
        tried.append(chosen.stop - chosen.start)
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("on purpose")
        return descend_rows(self, chosen, key)

    monkeypatch.setattr(Inversion, "descend_rows", small)
    split = inversion(subject, [prompt], "block.0", steps=5, restarts=8).descend()
    assert tried == [8, 4, 2, 2, 2, 2]
    assert torch.allclose(split.losses, whole.losses, rtol=1e-4)


def test_another_runtime_error_is_not_taken_for_memory(
    subject: probekit.Subject, prompt: probekit.Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Inversion, "descend_rows", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        inversion(subject, [prompt], "block.0", restarts=8).descend()


def test_lbfgs_finds_the_least_of_a_quadratic_for_each_row() -> None:
    """Four rows with curvatures from 1 to 10⁴: each comes down by itself, far faster than descent could."""
    from probekit_plugins.gradient_inverter.optimizers import BatchedLBFGS

    generator = torch.Generator().manual_seed(0)
    curvature = torch.logspace(0, 4, 12).expand(4, 12) * torch.tensor([[1.0], [2.0], [0.1], [30.0]])
    least = torch.randn(4, 12, generator=generator)
    x = torch.zeros(4, 12)
    optimizer = BatchedLBFGS(x, lambda values: (curvature * (values - least).square()).sum(1), None)
    first = optimizer.step(1.0)
    losses = [optimizer.step(1.0) for _ in range(120)]
    assert bool((losses[-1] < 1e-6 * first).all())
    assert all(bool((later <= earlier + 1e-6).all()) for earlier, later in pairwise(losses))


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
    """The loss is measured where it is said to be: by an independent computation of the same truncated model."""
    found = inversion(subject, [prompt], "block.0", restarts=4, head=head)
    model = subject.model

    def output(embeddings: torch.Tensor) -> torch.Tensor:
        states = model.transformer.h[0](embeddings + model.transformer.wpe.weight[: len(IDS)])
        states = states[0] if isinstance(states, tuple) else states
        if head == "model":
            states = model.transformer.ln_f(states)
        return states if head == "none" else model.lm_head(states)

    shifted, losses = found.shifted_losses(0.05)
    e = subject.embed(prompt.input_ids)
    with torch.no_grad():
        expected = (output(shifted) - output(e)).abs().sum((1, 2))
    assert torch.allclose(losses, expected, rtol=1e-4)
    assert float((shifted - e).std()) == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ("l1", lambda o, t: (o - t).abs().sum()),
        ("l2", lambda o, t: (o - t).square().sum().sqrt()),
        ("cosine", lambda o, t: 1 - (o * t).sum() / (o.norm() * t.norm())),
        ("mixed", lambda o, t: 0.3 * (1 - (o * t).sum() / (o.norm() * t.norm())) + 2 * (o - t).abs().sum()),
    ],
)
@pytest.mark.parametrize("positions", ["all", [0, -1]])
def test_each_loss_is_its_formula_over_the_positions_matched(
    subject: probekit.Subject,
    prompt: probekit.Prompt,
    loss: str,
    formula: Callable[..., torch.Tensor],
    positions: object,
) -> None:
    found = inversion(
        subject, [prompt], "block.1", restarts=3, loss=loss, alpha=0.3, beta=2.0, target_positions=positions
    )
    layer_map = subject.layer_map("block.1")
    chosen = list(range(len(IDS))) if positions == "all" else [0, len(IDS) - 1]
    with torch.no_grad():
        target = layer_map(subject.embed(prompt.input_ids))[0, chosen].double()
        starts = found.starts()
        losses = found.objective()(starts)
        for row, value in zip(layer_map(starts)[:, chosen].double(), losses, strict=True):
            assert float(value) == pytest.approx(float(formula(row, target)), rel=1e-4)


def test_only_the_last_position_is_matched_and_only_what_it_sees_is_found(subject: probekit.Subject) -> None:
    prompt = probekit.Prompt("", subject.check_ids(IDS), subject.tokens(IDS))
    result = inverted(subject, prompt, target_positions=[0], steps=200, restarts=2)
    right = result.tensors["0/block.0/right"]
    assert float(right[0]) == 1.0, "the first position's activation says the first token"
    assert float(right[1:].mean()) < 1.0, "and nothing of what follows"


@pytest.mark.parametrize("space", ["embedding", "vocabulary-linear", "vocabulary-softmax"])
def test_every_input_space_recovers_an_untrained_block(
    subject: probekit.Subject, prompt: probekit.Prompt, space: str
) -> None:
    result = inverted(subject, prompt, input_space=space, steps=400, restarts=2)
    assert result.metrics["block.0/token_accuracy_max"] == 1.0


def test_a_restricted_vocabulary_is_all_that_is_found(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, vocabulary=[1, 5, 17, 8, 9], steps=30, top_k=5)
    found = {index for sequence in result.sequences["recovered"] for index in sequence.ids}
    assert found == {1, 5, 17, 8, 9}
    with pytest.raises(probekit.UsageError, match="from 0 to 59"):
        inverted(subject, prompt, vocabulary=[1, 60])


@pytest.mark.parametrize("space", ["vocabulary-linear", "vocabulary-softmax"])
def test_a_restricted_vocabulary_in_vocabulary_space(
    subject: probekit.Subject, prompt: probekit.Prompt, space: str
) -> None:
    result = inverted(subject, prompt, vocabulary=[*IDS, 1, 9], input_space=space, steps=200, restarts=2, top_k=3)
    assert result.metrics["block.0/token_accuracy_max"] == 1.0


def test_the_embedding_box_holds_every_recorded_embedding(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, embedding_box=True, start_sigma=1.0, steps=20, restarts=3)
    low, high = subject.embedding_matrix.amin(0), subject.embedding_matrix.amax(0)
    final = result.tensors["0/block.0/embeddings"]
    assert bool(((final >= low) & (final <= high)).all())


def test_the_pull_draws_towards_the_nearest_embedding(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    def distance(pull: float) -> float:
        final = inverted(subject, prompt, nearest_pull=pull, steps=8).tensors["0/block.0/embeddings"]
        return float(torch.cdist(final.flatten(0, 1), subject.embedding_matrix).amin(1).mean())

    assert distance(1000.0) < 0.7 * distance(0.0)


def test_the_pull_is_the_gradient_of_its_formula(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    found = inversion(subject, [prompt], "block.0", nearest_pull=0.7, restarts=2)
    x = found.starts().requires_grad_(True)
    (gradient,) = torch.autograd.grad(found.space.prior(x).sum(), x)
    W = subject.embedding_matrix
    nearest = W[torch.cdist(x.detach(), W[None]).argmin(-1)]
    assert torch.allclose(gradient, 2 * 0.7 * (x.detach() - nearest), atol=1e-6)


def test_each_shift_has_its_row(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, shift_sigma=[0.05, 0.04, 0.01], steps=5)
    medians = [float(row["m_median"] or 0) for row in result.tables["shifts"]]
    assert [row["sigma"] for row in result.tables["shifts"]] == [0.05, 0.04, 0.01]
    assert medians[0] / medians[2] == pytest.approx(5, rel=0.2), "for small shifts m grows with σ"
    assert all(row["shifted_loss"] == medians[0] for row in result.tables["restarts"])


def test_next_tokens_are_the_whole_models(subject: probekit.Subject, prompt: probekit.Prompt) -> None:
    result = inverted(subject, prompt, steps=1, restarts=4)
    with torch.no_grad():
        wanted = subject.model(input_ids=prompt.input_ids).logits[0, -1].argmax()
        for row in result.tables["restarts"]:
            ids = next(
                s.ids
                for s in result.sequences["recovered"]
                if s.labels["restart"] == row["restart"] and not s.labels["rank"]
            )
            found = subject.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
            assert row["next_token_of_tokens"] == bool(found == wanted)
    assert inverted(subject, prompt, steps=1, next_token=False).metrics["block.0/next_token_rate"] is None


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


def test_a_long_descent_has_a_short_page(subject: probekit.Subject, prompt: probekit.Prompt, tmp_path: Path) -> None:
    """Everything is saved; below the slider stands what can be told apart, the first and the last step among it."""
    options = GradientInverterOptions(steps=300, restarts=2, record_every=1)
    analysis = GradientInverter(options, probekit.Context())
    for name, content in analysis.run(subject, [prompt]).encode().items():
        (tmp_path / name).write_bytes(content)
    saved = probekit.Result.read(tmp_path)
    assert len(saved.sequences["trajectory"]) == 301
    page = probekit.Page("gradient-inverter")
    analysis.report(saved, page)
    [block] = [block for block in page.to_json()["blocks"] if block["type"] == "trajectory"]
    assert [row["label"] for row in block["series"][0]["rows"]] == [f"step {step}" for step in range(301)]
    report = render_html(Document("t", "q", pages=[("one", page)]))
    [below] = re.findall(r"Steps below each other .*?</table>", report, re.DOTALL)
    assert 20 <= below.count("<tr>") <= 48
    assert '<th scope="row">step 0</th>' in below
    assert '<th scope="row">step 300</th>' in below


def saved(result: probekit.Result, folder: Path) -> probekit.Result:
    for name, content in result.encode().items():
        (folder / name).write_bytes(content)
    return probekit.Result.read(folder)


def blocks_of(result: probekit.Result, folder: Path, **options: object) -> list[dict[str, Any]]:
    page = probekit.Page("gradient-inverter")
    analysis = GradientInverter(GradientInverterOptions(**options), probekit.Context())  # type: ignore[arg-type]
    analysis.report(saved(result, folder), page)
    blocks: list[dict[str, Any]] = page.to_json()["blocks"]
    return blocks


def test_one_inversion_shows_the_selected_restart_beside_all(
    subject: probekit.Subject, prompt: probekit.Prompt, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 6, "restarts": 3, "record_every": 2}
    result = inverted(subject, prompt, **options)
    one = next(int(row["restart"] or 0) for row in result.tables["restarts"] if row["selected"])
    accuracy, losses = (block for block in blocks_of(result, tmp_path, **options) if block["type"] == "band")
    names = [f"restart {one}, selected", "all 3 restarts"]
    assert [series["name"] for series in accuracy["series"]] == names
    assert [series["name"] for series in losses["series"]] == [*names, "m, the noisy prompt's loss"]
    m = result.tables["restarts"][0]["shifted_loss"]
    ratios = (result.tensors["0/block.0/losses"] / m)[4]
    at_4 = [next(point for point in series["points"] if point[0] == 4)[1:] for series in losses["series"][:2]]
    assert at_4[0] == pytest.approx([float(ratios[one])] * 3)
    assert at_4[1] == pytest.approx([float(each) for each in (ratios.median(), ratios.min(), ratios.max())])


def test_several_inversions_are_compared_by_site_and_the_table_leads_to_each(
    subject: probekit.Subject, prompt: probekit.Prompt, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"sites": "blocks", "steps": 6, "restarts": 2, "record_every": 3}
    blocks = blocks_of(inverted(subject, prompt, **options), tmp_path, **options)
    charts = [block for block in blocks if block["type"] == "band"]
    assert [(block["y"], [series["name"] for series in block["series"]]) for block in charts] == [
        ("token accuracy", ["block.0", "block.1"]),
        ("loss / m", ["block.0", "block.1"]),
    ]
    table = next(block for block in blocks if block["type"] == "table")
    headings = [block["text"] for block in blocks if block["type"] == "heading"]
    assert table["targets"] == [f"#{heading}" for heading in headings] == ["#block.0", "#block.1"]
    assert table["in_summary"]


def test_sites_where_all_or_nothing_comes_back_are_a_sentence_and_others_a_heatmap(
    subject: probekit.Subject, prompt: probekit.Prompt, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"sites": "blocks", "steps": 2, "restarts": 2}
    result = inverted(subject, prompt, **options)

    def drawn(*shares: float) -> tuple[list[str], int]:
        for site, share in zip(("block.0", "block.1"), shares, strict=True):
            result.tensors[f"0/{site}/right"] = torch.full((len(IDS),), share)
        blocks = blocks_of(result, tmp_path, **options)
        said = [
            block["text"] for block in blocks if block["type"] == "prose" and "each of the 2 sites" in block["text"]
        ]
        return said, sum(block["type"] == "heatmap" for block in blocks)

    assert drawn(1.0, 1.0) == (["Every restart recovers every token of the prompt, at each of the 2 sites."], 0)
    assert drawn(0.0, 0.0) == (["No restart recovers any token of the prompt, at each of the 2 sites."], 0)
    assert drawn(1.0, 0.5) == ([], 1)
    assert drawn(0.5, 0.5) == ([], 1)


def test_a_candidate_that_is_not_the_token_is_no_mistake(
    subject: probekit.Subject, prompt: probekit.Prompt, tmp_path: Path
) -> None:
    result = inverted(subject, prompt, steps=200, restarts=1)
    [candidates] = [
        block
        for block in blocks_of(result, tmp_path, steps=200, restarts=1)
        if block.get("caption", "").startswith("The best candidates")
    ]
    marks = [[token.get("mark") for token in row["tokens"]] for row in candidates["rows"]]
    assert marks == [["right"] * len(IDS)] + [[None] * len(IDS)] * 4


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([1.0], "100% of the prompt's tokens from block.0,"),
        ([0.999], ">99% of the prompt's tokens from block.0,"),
        ([0.001], "<1% of the prompt's tokens from block.0,"),
        ([1.0, 1.0], "100% of the prompt's tokens from each of 2 sites (block.0 to block.1),"),
        ([1.0, 0.5, 0.0], "100% of the prompt's tokens from block.0, 50% from block.1 and 0% from block.2,"),
        (
            [0.9, 1.0, 0.2, 1.0, 0.9],
            "90% of the prompt's tokens from block.0, 20% from block.2 and 90% from block.4 "
            "(of 5 sites the first, the worst and the last),",
        ),
        ([0.9, 0.9, 1.0, 1.0, 0.9], "90% of the prompt's tokens from block.0 and 90% from block.4 (of 5 sites"),
    ],
)
def test_the_finding_is_a_sentence_at_any_number_of_sites(shares: list[float], told: str) -> None:
    sites = [f"block.{number}" for number in range(len(shares))]
    columns = ("loss_ratio", "top_k_accuracy", "exact", "next_token_of_tokens")
    rows = [
        {
            "prompt": 0,
            "site": site,
            "selected": best,
            "token_accuracy": share if best else 0.0,
            **dict.fromkeys(columns),
        }
        for site, share in zip(sites, shares, strict=True)
        for best in (True, False)
    ]
    result = probekit.Result(tables={"restarts": rows})
    summarise(result, sites, GradientInverterOptions(restarts=2))
    assert result.finding.startswith(f"Gradient descent recovers {told}")
    assert (
        "in the best of 2 restarts, chosen without knowing the prompt; the mean of all restarts is " in result.finding
    )
    summarise(result, sites, GradientInverterOptions(restarts=1))
    assert "restarts" not in result.finding


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
            assert f"{row['token_accuracy']:.0%} right, loss / m {row['loss_ratio']:.3g}" in report


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


def test_the_first_steps_that_are_closer_than_the_shift_and_exact(
    subject: probekit.Subject, prompt: probekit.Prompt
) -> None:
    """Read off the saved losses and tokens, by hand; None for a restart that never gets there."""
    result = inverted(subject, prompt, sites="block.0", steps=60, restarts=3, record_every=5)
    short = inverted(subject, prompt, sites="block.0", steps=1, restarts=3)
    assert all(row["steps_to_exact"] is None for row in short.tables["restarts"])
    losses, ids = result.tensors["0/block.0/losses"], result.tensors["0/block.0/recorded_ids"]
    steps = result.tensors["0/block.0/recorded_steps"].tolist()
    for row in result.tables["restarts"]:
        restart = int(row["restart"] or 0)
        m = float(row["shifted_loss"] or 0)
        closer = [step for step, loss in enumerate(losses[:, restart].tolist()) if loss < m]
        exact = [step for step, found in zip(steps, ids[:, restart].tolist(), strict=True) if found == IDS]
        assert row["steps_to_closer"] == (closer[0] if closer else None)
        assert row["steps_to_exact"] == (exact[0] if exact else None)
    assert any(row["steps_to_exact"] for row in result.tables["restarts"])


def test_a_model_in_double_precision_is_inverted_in_it_throughout() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    subject = probekit.Subject(GPT2LMHeadModel(config).double())
    prompt = probekit.Prompt("", subject.check_ids(IDS), subject.tokens(IDS))
    result = inverted(subject, prompt, steps=1, restarts=1, optimizer="descent", learning_rate=1.0, schedule="constant")
    found = inversion(subject, [prompt], "block.0", restarts=1)
    start, layer_map = found.starts().requires_grad_(), subject.layer_map("block.0")
    target = layer_map(subject.embed(prompt.input_ids))
    (gradient,) = torch.autograd.grad((layer_map(start) - target).abs().sum(), start)
    # To the last digits: a step that was rounded to fp32 anywhere is 1e-7 off.
    after = result.tensors["0/block.0/embeddings"]
    torch.testing.assert_close(after, (start - gradient).detach()[:, : len(IDS)], rtol=1e-12, atol=1e-13)
