"""What makes the joint descent strong: the warm start, re-scoring, named settings, and the page's beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import probekit
from probekit_plugins.batches import Batches
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.gradient_inverter.inversion import Inversion
from probekit_plugins.gradient_inverter.rescoring import Judge, sweep
from probekit_plugins.gradient_inverter.settings import PAGE, STRONG
from probekit_plugins.token_likelihood import TokenLikelihood, sampled_prompts

LONG = [5, 17, 2, 40, 33, 8]
SHORT = [9, 33, 21]
SITE = "block.1"


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=32, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return probekit.Subject(GPT2LMHeadModel(config).eval())


def prompts(subject: probekit.Subject, *ids: list[int]) -> list[probekit.Prompt]:
    return [probekit.Prompt("", subject.check_ids(each), subject.tokens(each)) for each in ids]


def inverted(subject: probekit.Subject, of: list[probekit.Prompt], **options: Any) -> probekit.Result:
    analysis = GradientInverter(GradientInverterOptions(**{"sites": SITE, **options}), probekit.Context(3))
    return analysis.run(subject, of)


def inversion(subject: probekit.Subject, of: list[probekit.Prompt], **options: Any) -> Inversion:
    return Inversion(subject, of, SITE, None, GradientInverterOptions(**options), probekit.Context())


# --- The warm start


def test_the_first_restart_starts_at_the_regression_whatever_the_prompts_lengths(subject: probekit.Subject) -> None:
    both = prompts(subject, LONG, SHORT)
    starts = inversion(subject, both, start="regression", restarts=3).starts()
    context = probekit.Context()
    sampled = sampled_prompts(subject, 32, context, "regression")
    fit = TokenLikelihood(subject, SITE, sampled, Batches(context), context)
    for number, prompt in enumerate(both):
        length = len(prompt.tokens)
        expected = fit.embeddings(subject.capture(prompt.input_ids, [SITE])[SITE])[0]
        torch.testing.assert_close(starts[3 * number, :length], expected, atol=1e-4, rtol=1e-4)
        noise = starts[3 * number + 1 : 3 * number + 3, :length] - expected
        assert float(noise.std()) == pytest.approx(float(subject.embedding_matrix.std()) / 4, rel=0.25)
        assert not torch.equal(noise[0], noise[1])
    # Padding is left at what it is.
    assert torch.equal(starts[3:, len(SHORT) :], subject.embed(torch.zeros(3, 3, dtype=torch.long)))


def test_without_steps_the_warm_start_decodes_to_the_tokens_nearest_to_the_regression(
    subject: probekit.Subject,
) -> None:
    [prompt] = prompts(subject, LONG)
    result = inverted(subject, [prompt], start="regression", restarts=1, steps=1, record_every=1, next_token=False)
    starts = Inversion(
        subject, [prompt], SITE, None, GradientInverterOptions(start="regression", restarts=1), probekit.Context(3)
    ).starts()
    first = next(sequence for sequence in result.sequences["trajectory"] if sequence.labels["step"] == 0)
    assert first.ids == subject.decode(starts, top_k=1, decoder="nearest")[0, :, 0].tolist()
    assert sum(found == wanted for found, wanted in zip(first.ids, LONG, strict=True)) >= 3


def test_what_is_not_matched_is_not_known(subject: probekit.Subject) -> None:
    """Another token at a position that is not matched changes no start."""
    options: dict[str, Any] = {"start": "regression", "restarts": 2, "target_positions": [0, 2]}
    first = inversion(subject, prompts(subject, LONG), **options).starts()
    other = inversion(subject, prompts(subject, [*LONG[:3], 1, 2, 3]), **options).starts()
    assert torch.equal(first, other)
    regression = inversion(subject, prompts(subject, LONG), start="regression", restarts=2).starts()
    assert torch.equal(first[:, [0, 2]], regression[:, [0, 2]])
    assert float(first[:, [1, 3, 4, 5]].std()) == pytest.approx(float(subject.embedding_matrix.std()), rel=0.2)


# --- Re-scoring


def _by_hand(subject: probekit.Subject, candidates: torch.Tensor, target: torch.Tensor, loss: str) -> list[int]:
    """One restart's candidates `[T, k]`, told apart one forward pass at a time, by the plain model."""
    chosen: list[int] = []
    for position, offered in enumerate(candidates.tolist()):
        found = []
        for token in offered:
            with torch.no_grad():
                states = subject.model(torch.tensor([[*chosen, token]]), output_hidden_states=True).hidden_states
            before_norm = subject.capture(torch.tensor([[*chosen, token]]), [SITE])[SITE]
            assert len(states) == 3
            difference = before_norm[0, -1] - target[0, position]
            found.append(float(difference.norm(p=1 if loss == "l1" else 2)))
        chosen.append(offered[found.index(min(found))])
    return chosen


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_rescoring_is_that_of_one_forward_pass_for_each_candidate(subject: probekit.Subject, loss: str) -> None:
    both = prompts(subject, LONG, SHORT)
    options: dict[str, Any] = {"steps": 3, "restarts": 2, "loss": loss, "rescore": 5, "top_k": 5, "next_token": False}
    result = inverted(subject, both, **options)
    changed = False
    for number, prompt in enumerate(both):
        target = subject.capture(prompt.input_ids, [SITE])[SITE]
        for restart in range(2):
            candidates = result.tensors[f"{number}/{SITE}/top_k_ids"][restart]
            rescored = result.tensors[f"{number}/{SITE}/rescored_ids"][restart].tolist()
            assert rescored == _by_hand(subject, candidates, target, loss)
            changed |= rescored != candidates[:, 0].tolist()
    assert changed, "re-scoring had something to do"


def test_rescored_tokens_have_figures_of_their_own_and_select_the_restart(subject: probekit.Subject) -> None:
    [prompt] = prompts(subject, LONG)
    plain = inverted(subject, [prompt], steps=3, restarts=4, next_token=False)
    result = inverted(subject, [prompt], steps=3, restarts=4, rescore=60, next_token=False)
    rows = result.tables["restarts"]
    # Every token is a candidate, so that the sweep is exact; what plain decoding gives stays what it is.
    assert all(row["rescored_exact"] and row["rescored_discrete_loss"] < 1e-3 for row in rows)  # type: ignore[operator]
    assert result.metrics[f"{SITE}/rescored_exact_rate"] == result.metrics[f"{SITE}/rescored_token_accuracy_min"] == 1
    for name in ("token_accuracy", "discrete_loss", "text", "loss"):
        assert [row[name] for row in rows] == [row[name] for row in plain.tables["restarts"]]
    assert "rescored_exact" not in plain.tables["restarts"][0]
    least = min(rows, key=lambda row: float(row["rescored_discrete_loss"] or 0))
    assert [row["restart"] for row in rows if row["selected"]] == [least["restart"]]
    assert [sequence.ids for sequence in result.sequences["rescored"]] == [LONG] * 4


def test_more_candidates_than_tokens_are_all_tokens_that_may_be_found(subject: probekit.Subject) -> None:
    [prompt] = prompts(subject, LONG)
    found = inverted(subject, [prompt], steps=1, restarts=2, rescore=500, vocabulary=[*LONG, 50, 51])
    assert all(row["rescored_exact"] for row in found.tables["restarts"])


def test_a_position_that_no_matched_activation_hears_of_keeps_its_first_candidate(subject: probekit.Subject) -> None:
    [prompt] = prompts(subject, LONG)
    result = inverted(subject, [prompt], steps=2, restarts=2, rescore=60, target_positions=[1, 3], next_token=False)
    rescored = result.tensors[f"0/{SITE}/rescored_ids"]
    first = result.tensors[f"0/{SITE}/top_k_ids"][..., 0]
    assert torch.equal(rescored[:, 4:], first[:, 4:])
    assert not torch.equal(rescored[:, :4], first[:, :4])
    losses = {
        name: [row[name] for row in result.tables["restarts"]] for name in ("discrete_loss", "rescored_discrete_loss")
    }
    assert all(a > b for a, b in zip(losses["discrete_loss"], losses["rescored_discrete_loss"], strict=True))  # type: ignore[operator]


def test_a_model_that_sees_what_follows_is_judged_by_the_whole_loss() -> None:
    """Each step of the sweep then takes the least whole loss among the candidates: by hand, for one row."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    subject = probekit.Subject(BertModel(config).eval())
    [prompt] = prompts(subject, LONG[:3])
    result = inverted(subject, [prompt], sites="block.0", steps=2, restarts=1, rescore=4, top_k=4)
    target = subject.capture(prompt.input_ids, ["block.0"])["block.0"]
    candidates = result.tensors["0/block.0/top_k_ids"][0]
    chosen = candidates[:, 0].clone()
    for position, offered in enumerate(candidates):
        tried = chosen.repeat(4, 1)
        tried[:, position] = offered
        losses = (subject.capture(tried, ["block.0"])["block.0"] - target).abs().sum((1, 2))
        chosen[position] = offered[losses.argmin()]
    assert torch.equal(result.tensors["0/block.0/rescored_ids"][0], chosen)


def test_the_judge_tells_a_causal_model_from_one_that_is_not(subject: probekit.Subject) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    both = {"causal": subject, "not": probekit.Subject(BertModel(config).eval())}
    ids = torch.tensor([LONG])
    for kind, model in both.items():
        target = model.capture(ids % 40, ["block.0"])["block.0"]
        mask = torch.tensor([[0, 1, 0, 1, 0, 0]])
        judge = Judge(model, "block.0", GradientInverterOptions(), ids % 40, None, target, mask)
        heard = judge.heard(torch.tensor([0]))
        assert heard[0].tolist() == ([True] * 4 + [False] * 2 if kind == "causal" else [True] * 6)


def test_a_loss_that_is_no_number_is_never_chosen() -> None:
    candidates = torch.tensor([[[1, 2, 3]]])
    found = torch.tensor([torch.nan, 2.0, 1.0])
    chosen = sweep(candidates, torch.ones(1, 1, dtype=torch.bool), lambda *_: found, probekit.Context(), "a", "a")
    assert chosen.tolist() == [[3]]


def test_rescoring_in_parts_finds_the_same(subject: probekit.Subject) -> None:
    both = prompts(subject, LONG, SHORT)
    options: dict[str, Any] = {"steps": 3, "restarts": 2, "rescore": 5, "next_token": False}
    whole, parts = (inverted(subject, both, **options, **more) for more in ({}, {"rows_at_once": 3}))
    for number in range(2):
        name = f"{number}/{SITE}/rescored_ids"
        assert torch.equal(whole.tensors[name], parts.tensors[name])


# --- Named settings, and the page's beside them


def test_named_settings_are_what_is_not_given() -> None:
    strong = GradientInverterOptions(settings="strong", rescore=3)
    assert strong.model_dump() == {
        **GradientInverterOptions().model_dump(),
        **STRONG,
        "settings": "strong",
        "rescore": 3,
    }
    page = GradientInverterOptions(settings="page", steps=7)
    assert page.model_dump() == {**GradientInverterOptions().model_dump(), **PAGE, "settings": "page", "steps": 7}
    # What a run has recorded comes to the same options again.
    assert GradientInverterOptions(**strong.model_dump()) == strong


def test_the_page_is_compared_bit_for_bit_with_a_run_of_its_own(subject: probekit.Subject) -> None:
    both = prompts(subject, LONG, SHORT)
    same: dict[str, Any] = {"sites": "blocks", "steps": 12, "restarts": 3, "record_every": 5, "next_token": False}
    result = inverted(subject, both, settings="strong", **same)
    alone = inverted(subject, both, settings="page", **same)
    for number in range(2):
        for site in ("block.0", "block.1"):
            for name in ("losses", "recorded_accuracy", "embeddings", "top_k_ids"):
                pair = (result.tensors[f"{number}/{site}/page/{name}"], alone.tensors[f"{number}/{site}/{name}"])
                assert torch.equal(*pair)
    assert len(result.tables["page_restarts"]) == len(alone.tables["restarts"]) == 12
    for row, own in zip(result.tables["page_restarts"], alone.tables["restarts"], strict=True):
        assert row == {name: own[name] for name in row}
    for name in ("token_accuracy_mean", "token_accuracy_selected", "exact_rate", "loss_ratio_median"):
        assert result.metrics[f"block.1/page/{name}"] == alone.metrics[f"block.1/{name}"]
    shares = [f"{result.metrics[f'{site}/page/token_accuracy_mean']:.0%}" for site in ("block.0", "block.1")]
    assert f", at the source page's settings {'/'.join(dict.fromkeys(shares))}." in result.finding
    assert ", before re-scoring " in result.finding


def test_these_settings_go_the_same_way_with_and_without_the_comparison(subject: probekit.Subject) -> None:
    of = prompts(subject, LONG)
    options: dict[str, Any] = {"settings": "strong", "steps": 6, "restarts": 2, "next_token": False}
    beside, alone = inverted(subject, of, **options), inverted(subject, of, **options, compare_page=False)
    assert beside.tables["restarts"] == alone.tables["restarts"]
    assert "page_restarts" not in alone.tables
    assert "page" not in alone.finding


def test_a_descent_of_the_page_that_explodes_is_a_note(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PAGE, "learning_rate", 1e30)
    result = inverted(subject, prompts(subject, LONG), compare_page=True, steps=5, restarts=2)
    assert any("The page's own settings found nothing at block.1. " in note for note in result.notes)
    assert result.metrics[f"{SITE}/page/token_accuracy_mean"] is None
    assert result.metrics[f"{SITE}/token_accuracy_mean"] is not None
    page = probekit.Page("gradient-inverter")
    GradientInverter(GradientInverterOptions(compare_page=True), probekit.Context()).report(
        _saved(result, tmp_path), page
    )


def _saved(result: probekit.Result, folder: Path) -> probekit.Result:
    for name, content in result.encode().items():
        (folder / name).write_bytes(content)
    return probekit.Result.read(folder)


def test_the_report_sets_both_side_by_side(subject: probekit.Subject, tmp_path: Path) -> None:
    options = GradientInverterOptions(settings="strong", sites="blocks", steps=6, restarts=2, record_every=3)
    analysis = GradientInverter(options, probekit.Context())
    result = _saved(analysis.run(subject, prompts(subject, LONG, SHORT)), tmp_path)
    page = probekit.Page("gradient-inverter")
    analysis.report(result, page)
    blocks = page.to_json()["blocks"]
    table = next(block for block in blocks if block.get("columns", [])[:2] == ["site", "settings"])
    assert [block for block in blocks if block.get("in_summary")] == [table]
    kinds = ["the page's settings", "these settings", "these, re-scored"]
    assert [row[:2] for row in table["rows"]] == [[site, kind] for site in ("block.0", "block.1") for kind in kinds]
    assert table["rows"][5][3] == result.metrics["block.1/rescored_token_accuracy_mean"]
    over_steps = [block for block in blocks if block["type"] == "band" and block["y"] == "token accuracy"]
    assert [[series["name"] for series in block["series"]] for block in over_steps] == [kinds[:2]] * 2
    assert [point[0] for point in over_steps[0]["series"][0]["points"]] == [0, 3, 6]
    assert any(block["type"] == "chart" and "by site" in block["caption"] for block in blocks)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": "regression", "head": "model"}, "leave out the head"),
        ({"start": "regression", "input_space": "vocabulary-linear"}, "goes with input_space=embedding"),
        ({"start": "regression", "target_share": 1.0}, "leave out target_share"),
        ({"start": "regression", "noise_share": 0.5}, "leave out noise_share"),
        ({"start": "regression", "start_mean": 0.5}, "leave out start_mean"),
        ({"settings": "strong", "head": "without-norm"}, "leave out the head"),
        ({"embedding_box": True, "input_space": "vocabulary-softmax"}, "the embedding box goes with"),
        ({"settings": "best"}, "settings"),
        ({"settings": ["strong"]}, "settings"),
        ({"rescore": -1}, "rescore"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_a_model_is_loaded(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        GradientInverterOptions(**options)


@pytest.mark.parametrize("wrong", [1, 4, 9])
def test_a_run_that_is_interrupted_goes_on_to_the_same_bytes(
    wrong: int, tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the n-th batch of candidates: in the sweep, with the regression and the descent behind it."""
    given: dict[str, Any] = {
        "model": str(tiny_gpt2()),
        "prompts": ["The sky is blue.", "The sea"],
        "options": {"settings": "strong", "sites": "block.1", "steps": 4, "restarts": 2, "rescore": 4},
    }
    whole = probekit.run(**given, output=tmp_path / "whole")
    judged = Judge.losses
    calls = 0

    def interrupted(self: Judge, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == wrong:
            raise KeyboardInterrupt
        return judged(self, *arguments)

    monkeypatch.setattr(Judge, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probekit.run(**given, output=tmp_path / "stopped")
    again = probekit.resume(tmp_path / "stopped")
    assert not again.failures
    for name in ("result.json", "tensors.safetensors"):
        path = Path("analyses/gradient-inverter") / name
        assert (tmp_path / "stopped" / path).read_bytes() == (whole.path / path).read_bytes()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("demo", ["The game takes place during the war.", "It was met with positive sales in the city."]),
        ("stories260k", ["Lily and Ben went to the park to play.", "The dog was sad because it rained."]),
        ("tinystories-656k", ["Lily and Ben went to the park to play.", "The dog was sad because it rained."]),
    ],
)
def test_at_the_last_block_of_a_trained_model_twice_the_pages_tokens_come_back(
    name: str, texts: list[str], data_folder: Path, tmp_path: Path
) -> None:
    run = probekit.run(
        model=name if name == "demo" else str(data_folder / "models" / name),
        prompts=texts,
        options={"settings": "strong", "sites": "block.-1", "steps": 100, "restarts": 2, "next_token": False},
        output=tmp_path / "run",
    )
    metrics = {key.split("/", 1)[-1]: value for key, value in run.result.metrics.items()}
    of_page = float(metrics["page/token_accuracy_mean"] or 0)
    assert of_page < 0.5
    for strong in ("token_accuracy_mean", "rescored_token_accuracy_mean"):
        assert float(metrics[strong] or 0) >= max(0.5, 2 * of_page)
