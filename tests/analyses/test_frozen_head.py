"""The frozen head against a training written out by hand, and what its arms have in common."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probekit
from probekit.plugins import Plugins
from probekit.runs import execute, resolve, resume
from probekit_plugins.frozen_head import FrozenHead, FrozenHeadOptions
from probekit_plugins.frozen_head.arm import Arm
from probekit_plugins.frozen_head.corpus import corpus
from probekit_plugins.frozen_head.fresh import fresh
from probekit_plugins.frozen_head.schedule import phases, points

SMALL: dict[str, Any] = {"steps": 8, "batch": 4, "length": 12, "initialisations": 2, "pieces": 40}
LAYERS = ["embedding", "block.0", "block.1", "head"]


def enlarged(model: nn.Module) -> None:
    """So that what the model writes is far from uniform, and can be learnt."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)


def gpt2(**settings: Any) -> GPT2LMHeadModel:
    sizes = {"vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, **settings}, bos_token_id=0, eos_token_id=0)).eval()
    enlarged(model)
    return model


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=31, max_position_embeddings=16, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).eval()
    enlarged(model)
    return model


@pytest.fixture(scope="module", params=[gpt2, llama])
def subject(request: pytest.FixtureRequest) -> probekit.Subject:
    return probekit.Subject(request.param())


def prompt_of(subject: probekit.Subject) -> probekit.Prompt:
    ids = subject.check_ids([3, 1])
    return probekit.Prompt("", ids, subject.tokens(ids))


def measured(subject: probekit.Subject, seed: int = 0, **options: Any) -> probekit.Result:
    chosen = FrozenHeadOptions(**{**SMALL, **options})
    result = FrozenHead(chosen, probekit.Context(seed, "frozen-head")).run(subject, [prompt_of(subject)])
    result.encode()  # finite, and storable
    return result


def arms(subject: probekit.Subject, **options: Any) -> tuple[Arm, Arm]:
    """Both arms of the first initialisation, before their training."""
    chosen, context = FrozenHeadOptions(**{**SMALL, **options}), probekit.Context(0, "frozen-head")
    pieces = corpus(subject, prompt_of(subject), chosen, context)
    trained, frozen = (Arm(subject, pieces, arm, 0, chosen, context) for arm in ("trained", "frozen"))
    return trained, frozen


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- the arms --------------------------------------------------------------------------------------------------------


def test_arms_share_their_start_and_their_batches_and_only_one_trains_the_head(subject: probekit.Subject) -> None:
    trained, frozen = arms(subject)
    start = weights(trained.model)
    assert all(torch.equal(start[name], other) for name, other in weights(frozen.model).items())
    assert torch.equal(trained.batches, frozen.batches)
    assert "lm_head.weight" in start, "the head has weights of its own, though the subject's are the embedding's"
    assert not torch.equal(start["lm_head.weight"], trained.model.get_input_embeddings().weight)  # type: ignore[operator]
    own = weights(subject.model)
    assert not any(torch.equal(start[name], own[name]) for name in own if own[name].dim() > 1), "fresh, not copied"
    trained.train(), frozen.train()
    for name, was in start.items():
        assert torch.equal(weights(frozen.model)[name], was) == (name == "lm_head.weight"), name
        assert not torch.equal(weights(trained.model)[name], was), name


def test_the_figures_of_the_start_are_equal_in_both_arms(subject: probekit.Subject) -> None:
    result = measured(subject)
    for number in (0, 1):
        one, other = (
            {name: result.tensors[f"{number}/{arm}/{name}"] for name in ("losses", "held_out", "gradients", "weights")}
            for arm in ("trained", "frozen")
        )
        assert one["losses"][0] == other["losses"][0]
        assert one["held_out"][0] == other["held_out"][0]
        assert torch.equal(one["weights"][0], other["weights"][0])
        assert torch.equal(one["gradients"][0, :-1], other["gradients"][0, :-1])
        assert one["gradients"][0, -1] > 0 == other["gradients"][0, -1]
    assert result.tensors["0/trained/losses"][0] != result.tensors["1/trained/losses"][0]


@pytest.mark.parametrize("arm", ["trained", "frozen"])
def test_a_step_is_that_of_adamw_written_out(subject: probekit.Subject, arm: str) -> None:
    """In float64, from the loss token by token: gradient norms, and the change of every layer by one step."""
    rate, warmup = 0.01, 0.5
    chosen = dict(zip(("trained", "frozen"), arms(subject, steps=1, learning_rate=rate, warmup=warmup), strict=True))
    plain = copy.deepcopy(chosen[arm].model).double().requires_grad_(True)
    ids = chosen[arm]._corpus.training[chosen[arm].batches[0]]
    terms = []
    for row in ids:
        probabilities = plain(input_ids=row[None], use_cache=False).logits[0].softmax(-1)
        terms += [-probabilities[place - 1, row[place]].log() for place in range(1, len(row))]
    loss = torch.stack(terms).mean()
    loss.backward()
    found = chosen[arm].train()
    assert float(found["losses"][0]) == pytest.approx(float(loss.detach()), rel=1e-5)
    anatomy = subject.anatomy
    paths = [anatomy.embedding_path, *(f"{anatomy.blocks_path}.{index}" for index in (0, 1)), "lm_head"]
    for layer, path in enumerate(paths):
        parameters = list(plain.get_submodule(path).parameters())
        gradient = torch.cat([each.grad.flatten() for each in parameters if each.grad is not None])
        weight = torch.cat([each.detach().flatten() for each in parameters])
        frozen = arm == "frozen" and path == "lm_head"
        assert float(found["gradients"][0, layer]) == pytest.approx(0 if frozen else float(gradient.norm()), rel=1e-4)
        assert float(found["weights"][0, layer]) == pytest.approx(float(weight.norm()), rel=1e-5)
        # The first step of AdamW: m / √v is the gradient over its size, and the weight decays by η · 0.01.
        step = -rate * (gradient / (gradient.abs() + 1e-8) + 0.01 * weight)
        change = 0 if frozen else float(step.norm() / weight.norm())
        for phase in (0, 1):
            assert float(found["changes"][phase, layer]) == pytest.approx(change, rel=2e-3)


def test_the_learning_rate_rises_over_the_warm_up(subject: probekit.Subject) -> None:
    """The first of four steps of a warm-up moves a quarter as far."""
    whole, _ = arms(subject, steps=1, warmup=0)
    quarter, _ = arms(subject, steps=4, warmup=1)
    quarter.batches = whole.batches.expand(4, -1)
    steps = [float(arm.train()["changes"][0, 1]) for arm in (whole, quarter)]
    assert steps[1] == pytest.approx(steps[0] / 4, rel=1e-3)


def test_a_scaled_head_is_the_same_head_in_another_size(subject: probekit.Subject) -> None:
    plain, _ = arms(subject)
    for scaled in arms(subject, head_scale=3.0):
        assert torch.equal(scaled.model.lm_head.weight, plain.model.lm_head.weight * 3)  # type: ignore[operator, union-attr]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_training_lowers_the_held_out_loss_and_leaves_the_subject(
    subject: probekit.Subject, assert_untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    random = torch.get_rng_state()
    with assert_untouched(subject.model):
        result = measured(subject, steps=60, learning_rate=0.01, pieces=100, head_scale=5.0)
    assert torch.equal(torch.get_rng_state(), random)
    for row in result.tables["pairs"]:
        before = float(row["held_out_loss_before"] or 0)
        assert float(row["held_out_loss_trained"] or 0) < before
        assert float(row["held_out_loss_frozen"] or 0) < before


def test_tables_and_metrics_follow_from_the_tensors(subject: probekit.Subject) -> None:
    result = measured(subject, steps=8)
    steps = points(8)
    assert (steps[0], steps[-1], phases(8)) == (0, 8, [(0, 2), (6, 8)])
    assert len(result.tables["training"]) == 2 * 2 * len(steps)
    assert [row["name"] for row in result.tables["layers"][:4]] == LAYERS
    assert len(result.tables["layers"]) == 2 * 2 * 2 * len(LAYERS)
    for row in result.tables["layers"]:
        tensors = {
            name: result.tensors[f"{row['initialisation']}/{row['arm']}/{name}"]
            for name in ("gradients", "weights", "changes")
        }
        chosen, layer = slice(0, 2) if row["phase"] == "early" else slice(6, 8), int(row["layer"] or 0)
        gradients, sizes = tensors["gradients"][chosen, layer], tensors["weights"][chosen, layer]
        assert row["relative_change"] == float(tensors["changes"][int(row["phase"] == "late"), layer])
        if (row["arm"], row["name"]) == ("frozen", "head"):
            assert (row["gradient_norm"], row["relative_gradient"], row["relative_change"]) == (None, None, 0)
        else:
            assert row["gradient_norm"] == pytest.approx(float(gradients.mean()))
            assert row["relative_gradient"] == pytest.approx(float((gradients / sizes).mean()))
    pairs = result.tables["pairs"]
    for number, row in enumerate(pairs):
        ends = {arm: float(result.tensors[f"{number}/{arm}/held_out"][-1]) for arm in ("trained", "frozen")}
        assert (row["held_out_loss_trained"], row["held_out_loss_frozen"]) == (ends["trained"], ends["frozen"])
        assert row["difference"] == ends["frozen"] - ends["trained"]
        changes = result.tensors[f"{number}/trained/changes"]
        assert row["late_change_last_over_first"] == pytest.approx(float(changes[1, 2] / changes[1, 1]))
        assert row["early_change_last_over_first"] == pytest.approx(float(changes[0, 2] / changes[0, 1]))
        gradients = result.tensors[f"{number}/trained/gradients"]
        late = gradients[6:].mean(0)
        assert row["late_gradient_last_over_first"] == pytest.approx(float(late[2] / late[1]))
    assert result.metrics["loss_difference_median"] == median(float(row["difference"] or 0) for row in pairs)
    assert result.metrics["frozen_lower"] == sum(float(row["difference"] or 0) < 0 for row in pairs)
    assert f"{result.metrics['held_out_loss_frozen_median']:.3f} with a frozen head" in result.finding


def test_the_same_seed_gives_the_same_bits_and_another_does_not(subject: probekit.Subject) -> None:
    first = measured(subject).encode()
    torch.manual_seed(99)
    assert measured(subject).encode() == first
    assert measured(subject, seed=1).encode() != first


def test_one_block_has_no_last_over_first() -> None:
    result = measured(probekit.Subject(gpt2(n_layer=1)), steps=2, initialisations=1)
    assert result.metrics["late_change_last_over_first"] is None
    assert "one initialisation" in result.finding


# --- text ------------------------------------------------------------------------------------------------------------


def test_the_last_tenth_of_a_text_is_held_out(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    subject, path = probekit.load(str(tiny_gpt2())), tmp_path / "text.txt"
    path.write_text("The sky is blue and the sea is green. " * 30, encoding="utf-8")
    options = FrozenHeadOptions(text=str(path), length=8)
    pieces = corpus(subject, prompt_of(subject), options, probekit.Context())
    ids = subject.tokenizer(path.read_text())["input_ids"]  # type: ignore[misc]
    count = len(ids) // 8
    assert len(pieces.held_out) == count // 10
    assert torch.cat([pieces.training, pieces.held_out]).flatten().tolist() == ids[: count * 8]
    path.write_text("The sky is blue and the sea is green.", encoding="utf-8")
    with pytest.raises(probekit.UsageError, match="so it takes 10; give a longer text"):
        corpus(subject, prompt_of(subject), options, probekit.Context())


def test_notes_say_what_was_trained_on(subject: probekit.Subject) -> None:
    notes = measured(subject, steps=1).notes
    assert any("the subject wrote itself" in note for note in notes)
    assert any("shares the head's weights with the embedding" in note for note in notes)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(probekit.UsageError, match="GPT2Model has no head that could be frozen"):
        measured(probekit.Subject(gpt2().transformer))


def test_a_quantised_model_is_refused(tiny_gpt2: Callable[..., Path]) -> None:
    with pytest.raises(probekit.UsageError, match="leave out --quantization"):
        measured(probekit.load(str(tiny_gpt2()), quantization="int8"))


def test_a_model_that_its_config_does_not_make_is_refused() -> None:
    changed = gpt2()
    changed.transformer.h[0].mlp = nn.Sequential(nn.Linear(16, 3), nn.Linear(3, 16))
    with pytest.raises(probekit.UsageError, match="makes another model of its config than this one"):
        fresh(probekit.Subject(changed), 0)

    class Particular(GPT2LMHeadModel):
        def __init__(self, config: GPT2Config, more: int) -> None:
            super().__init__(config)

    with pytest.raises(probekit.UsageError, match="Particular cannot be made anew from its config"):
        fresh(probekit.Subject(Particular(gpt2().config, 1).eval()), 0)


def test_a_head_that_its_class_ties_anyway_is_untied() -> None:
    class Tied(GPT2LMHeadModel):
        def __init__(self, config: GPT2Config) -> None:
            super().__init__(config)
            self.lm_head.weight = self.transformer.wte.weight

    model = fresh(probekit.Subject(Tied(gpt2().config).eval()), 0)
    head, embedding = model.get_submodule("lm_head").weight, model.get_submodule("transformer.wte").weight
    assert head is not embedding
    assert torch.equal(head, embedding)  # type: ignore[arg-type]


def test_a_learning_rate_that_breaks_it_is_one_sentence(subject: probekit.Subject) -> None:
    sentence = r"\(initialisation 1, trained head\) is not finite after \d steps; .*-o learning_rate=1e\+29"
    with pytest.raises(probekit.AnalysisError, match=sentence):
        measured(subject, learning_rate=1e30)


# --- runs ------------------------------------------------------------------------------------------------------------


class At:
    """A listener that interrupts at the n-th sign of progress."""

    def __init__(self, moment: int) -> None:
        self._moment = moment
        self.seen: list[str] = []

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        self.seen.append(label)
        if len(self.seen) == self._moment:
            signal.raise_signal(signal.SIGINT)

    def message(self, text: str) -> None:
        pass


def begin(model: Path, listener: At) -> None:
    options = {**SMALL, "pieces": 70, "initialisations": 1}
    values = {
        "model": {"name": str(model)},
        "plugins": ["frozen-head"],
        "prompts": ["The sky is blue."],
        "options": {"frozen-head": options},
    }
    plugins = Plugins()
    execute(resolve([("test", values)], plugins), plugins, Path("run"), listener, (), 0.0)


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "timings.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_an_interrupted_run_ends_with_the_same_bits(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while text is written, early, between the phases, late, and in the other arm."""
    monkeypatch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole = At(0)
    begin(tiny_gpt2(), whole)
    expected = contents(tmp_path / "whole/run")
    first, second = (
        [place for place, label in enumerate(whole.seen, 1) if label == f"initialisation 1, {arm} head"]
        for arm in ("trained", "frozen")
    )
    assert len(first) == len(second) == SMALL["steps"]
    for moment in (1, first[0], first[3], first[6], second[1], second[-1]):
        (tmp_path / f"at {moment}").mkdir()
        monkeypatch.chdir(tmp_path / f"at {moment}")
        with pytest.raises(KeyboardInterrupt):
            begin(tiny_gpt2(), At(moment))
        resumed = At(0)
        assert resume(Path("run"), Plugins(), resumed).status == "done"
        # A batch of text that is read back is shown as done, as one that is written.
        assert len(resumed.seen) < len(whole.seen) or moment == 1
        found = contents(Path("run"))
        assert sorted(found) == sorted(expected)
        assert [name for name in found if found[name] != expected[name]] == []


def test_the_page_is_drawn_from_what_was_saved(subject: probekit.Subject, tmp_path: Path) -> None:
    for name, content in measured(subject).encode().items():
        (tmp_path / name).write_bytes(content)
    page = probekit.Page("frozen-head")
    FrozenHead(FrozenHeadOptions()).report(probekit.Result.read(tmp_path), page)
    json.dumps(page.to_json())
    bands = [block for block in page.blocks if block["type"] == "band"]
    assert [series["name"] for series in bands[0]["series"]] == ["trained head", "frozen head"]
    shown = {block["caption"]: [len(series["points"]) for series in block["series"]] for block in bands[1:]}
    where = "(0 is the embedding, 1 to 2 the blocks, 3 the head)"
    assert shown == {
        f"Relative change by layer, trained head {where}": [4, 4],
        f"Relative change by layer, frozen head {where}": [4, 4],
        f"Gradient norm by layer, trained head {where}": [4, 4],
        f"Gradient norm by layer, frozen head {where}": [3, 3],
    }
    assert [len(block["rows"]) for block in page.blocks if block["type"] == "table"] == [2, 4, 2 * 2 * len(points(8))]
