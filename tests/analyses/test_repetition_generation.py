"""Repetition in what a model writes: strategies, predictions and fine-tuning against independent transcriptions."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, RepetitionPenaltyLogitsProcessor

import probekit
from probekit.plugins import Plugins
from probekit.runs import execute, resolve, resume
from probekit_plugins.penalties import LiteralPenalty
from probekit_plugins.repetition import Repetition, RepetitionOptions
from probekit_plugins.repetition.finetuning import FineTuning
from probekit_plugins.repetition.generation import Generation
from probekit_plugins.repetition.predictions import means, measure, unlikelihood

PROMPT = [3, 1, 4]
END = 0


def small(vocabulary: int = 7, seed: int = 0, scale: float = 4.0) -> probekit.Subject:
    """A GPT-2 of random weights, enlarged so that its distributions are far from uniform; token 0 ends a text."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=END, eos_token_id=END
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            for parameter in block.parameters():
                parameter.mul_(scale)
        model.transformer.wte.weight.mul_(2 * scale)
    return probekit.Subject(model)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return small()


def prompts_of(subject: probekit.Subject, *every: list[int]) -> list[probekit.Prompt]:
    tensors = [subject.check_ids(ids) for ids in every]
    return [probekit.Prompt("", ids, subject.tokens(ids)) for ids in tensors]


def continued(subject: probekit.Subject, strategy: str, seed: int = 0, **options: Any) -> list[list[int]]:
    chosen = RepetitionOptions(**({"strategies": [strategy], "new_tokens": 5} | options))
    generation = Generation(subject, prompts_of(subject, PROMPT), chosen, probekit.Context(seed), "before")
    found: list[list[int]] = generation.texts()[strategy, 0].tolist()
    return found


def next_logits(subject: probekit.Subject, ids: list[int]) -> torch.Tensor:
    """What follows, by the model itself; the end of the text is never chosen."""
    with torch.no_grad():
        logits: torch.Tensor = subject.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


def without_end(logits: torch.Tensor) -> torch.Tensor:
    kept = logits.clone()
    kept[END] = -torch.inf
    return kept


# --- strategies ------------------------------------------------------------------------------------------------------


def test_greedy_is_a_loop_of_argmax(subject: probekit.Subject) -> None:
    ids = list(PROMPT)
    for _ in range(12):
        ids.append(int(without_end(next_logits(subject, ids)).argmax()))
    assert continued(subject, "greedy", new_tokens=12) == [ids[3:]]


def log_likelihood(subject: probekit.Subject, new: tuple[int, ...]) -> float:
    ids = list(PROMPT)
    total = 0.0
    for index in new:
        total += float(next_logits(subject, ids).log_softmax(-1)[index])
        ids.append(index)
    return total


def test_beam_search_with_beams_enough_finds_the_likeliest_text_of_all(subject: probekit.Subject) -> None:
    every = list(product(range(1, 7), repeat=3))
    best = max(every, key=lambda new: log_likelihood(subject, new))
    assert continued(subject, "beam", new_tokens=3, beams=36) == [list(best)]


@pytest.mark.parametrize("seed", range(3))
def test_beam_search_with_few_beams_is_its_transcription(seed: int) -> None:
    subject = small(seed=seed)
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(4):
        longer = [
            (score + float(after[index]), [*new, index])
            for score, new in beams
            for after in [next_logits(subject, PROMPT + new).log_softmax(-1)]
            for index in range(1, 7)
        ]
        beams = sorted(longer, key=lambda beam: beam[0], reverse=True)[:2]
    assert continued(subject, "beam", new_tokens=4, beams=2) == [beams[0][1]]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.6, 1.0])
def test_contrastive_search_is_its_formula_by_brute_force(alpha: float) -> None:
    """Every candidate in a forward of its own, cosines of hidden states after the final norm one by one."""
    subject = small(vocabulary=20, scale=2.0)
    model: Any = subject.model
    ids = list(PROMPT)
    for _ in range(8):
        probabilities = without_end(next_logits(subject, ids)).softmax(-1)
        scores = {}
        for index in sorted(range(20), key=lambda token: -float(probabilities[token]))[:4]:
            with torch.no_grad():
                states = model.transformer(input_ids=torch.tensor([[*ids, index]])).last_hidden_state[0].double()
            worst = max(float(torch.cosine_similarity(states[-1], state, dim=0)) for state in states[:-1])
            scores[index] = (1 - alpha) * float(probabilities[index]) - alpha * worst
        ids.append(max(scores, key=lambda token: scores[token]))
    found = continued(subject, "contrastive", new_tokens=8, contrastive_k=4, contrastive_alpha=alpha)
    assert found == [ids[3:]]
    if alpha == 0:
        assert found == continued(subject, "greedy", new_tokens=8)


def test_contrastive_search_takes_all_tokens_where_k_is_more(subject: probekit.Subject) -> None:
    [found] = continued(subject, "contrastive", contrastive_k=50)
    assert END not in found


def test_ctrl_multiplies_negative_logits_and_its_literal_form_makes_them_likelier() -> None:
    logits, generated = torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor([[1, 1, 2]])
    assert float(logits.softmax(-1)[0, 2]) == pytest.approx(0.00590, abs=5e-6)
    literal = LiteralPenalty(1.2, prompt_length=2)(generated, logits.clone())
    penalised = RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=2)(generated, logits.clone())
    assert float(literal.softmax(-1)[0, 2]) == pytest.approx(0.00821, abs=5e-6)
    assert float(penalised.softmax(-1)[0, 2]) == pytest.approx(0.00396, abs=5e-6)


@pytest.mark.parametrize("strategy", ["ctrl", "ctrl-literal"])
def test_ctrl_is_a_greedy_loop_over_penalised_logits_of_the_generated_tokens_only(strategy: str) -> None:
    subject = small(vocabulary=20)
    new: list[int] = []
    for _ in range(10):
        logits = without_end(next_logits(subject, PROMPT + new))
        for index in set(new):
            away = logits[index] < 0 and strategy == "ctrl"
            logits[index] = logits[index] * 1.5 if away else logits[index] / 1.5
        new.append(int(logits.argmax()))
    assert continued(subject, strategy, new_tokens=10, penalty=1.5) == [new]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_samples_from_the_tempered_distribution(subject: probekit.Subject, temperature: float) -> None:
    count = 4000
    drawn = continued(subject, "temperature", new_tokens=1, samples=count, temperature=temperature)
    share = torch.tensor(drawn).flatten().bincount(minlength=7) / count
    expected = (without_end(next_logits(subject, PROMPT)) / temperature).softmax(-1)
    assert float((share - expected).abs().sum() / 2) < 0.03


@pytest.mark.parametrize("penalty", [1.0, 3.0])
def test_ctrl_samples_where_its_temperature_is_not_zero(subject: probekit.Subject, penalty: float) -> None:
    """At the second token, after the first one drawn: only that one is penalised."""
    drawn = continued(
        subject, "ctrl", new_tokens=2, samples=4000, penalty=penalty, ctrl_temperature=2.0, strategies=["ctrl"]
    )
    first = max({new[0] for new in drawn}, key=lambda index: sum(new[0] == index for new in drawn))
    second = torch.tensor([new[1] for new in drawn if new[0] == first])
    logits = without_end(next_logits(subject, [*PROMPT, first]))
    logits[first] = logits[first] * penalty if logits[first] < 0 else logits[first] / penalty
    share = second.bincount(minlength=7) / len(second)
    assert float((share - (logits / 2).softmax(-1)).abs().sum() / 2) < 0.05


@pytest.mark.parametrize("strategy", ["top-k", "nucleus"])
def test_truncated_sampling_stays_in_its_set_and_reaches_all_of_it(strategy: str) -> None:
    """The k likeliest tokens; the fewest tokens whose probability is at least p."""
    subject = small(vocabulary=20, scale=1.5)
    drawn = continued(subject, strategy, new_tokens=3, samples=600, top_k=3, top_p=0.7)
    reached: dict[tuple[int, ...], set[int]] = {}
    for new in drawn:
        for place, index in enumerate(new):
            reached.setdefault(tuple(new[:place]), set()).add(index)
    for before, found in reached.items():
        probabilities, order = without_end(next_logits(subject, [*PROMPT, *before])).softmax(-1).sort(descending=True)
        size = 3 if strategy == "top-k" else int((probabilities.cumsum(0) < 0.7).sum()) + 1
        allowed = set(order[:size].tolist())
        assert found <= allowed
        if not before:
            assert found == allowed


def test_the_models_own_generation_settings_do_not_leak_in() -> None:
    plain, own = small(vocabulary=20), small(vocabulary=20)
    settings: Any = own.model.generation_config
    settings.do_sample, settings.temperature, settings.top_k, settings.repetition_penalty = True, 0.1, 1, 5.0
    settings.no_repeat_ngram_size, settings.typical_p = 2, 0.2
    for strategy in ("greedy", "temperature", "top-k", "nucleus", "beam", "ctrl"):
        assert continued(own, strategy, new_tokens=8) == continued(plain, strategy, new_tokens=8)


def test_seeds_decide_and_the_callers_random_state_stays(subject: probekit.Subject) -> None:
    state = torch.random.get_rng_state()
    once, again, other = (continued(subject, "temperature", seed, new_tokens=20) for seed in (0, 0, 1))
    assert once == again != other
    assert len(once) == 8
    assert len({tuple(new) for new in once}) > 4
    assert torch.equal(torch.random.get_rng_state(), state)
    parted = continued(subject, "temperature", new_tokens=20, rows_at_once=3)
    assert len(parted) == 8


def test_no_text_ends_early(subject: probekit.Subject) -> None:
    for strategy in RepetitionOptions().strategies:
        assert all(len(new) == 30 and END not in new for new in continued(subject, strategy, new_tokens=30))


# --- predictions -----------------------------------------------------------------------------------------------------


def by_hand(subject: probekit.Subject, ids: list[int], start: int, window: int) -> dict[str, float]:
    """The definitions, position by position."""
    found = {"rep": 0.0, "wrep": 0.0, "text_rep": 0.0, "unlikelihood": 0.0, "nll": 0.0}
    for place in range(max(start, 1), len(ids)):
        logits = next_logits(subject, ids[:place])
        probabilities = logits.double().softmax(-1)
        best, near = int(logits.argmax()), ids[max(0, place - window) : place]
        found["rep"] += best in near
        found["wrep"] += best in near and best != ids[place]
        found["text_rep"] += ids[place] in near
        for index in set(ids[:place]) - {ids[place]}:
            found["unlikelihood"] -= float(torch.log((1 - probabilities[index]).clamp(min=1e-5)))
        found["nll"] -= float(torch.log(probabilities[ids[place]]))
    return found


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("window", [1, 3, 50])
def test_predictions_are_their_definitions(subject: probekit.Subject, start: int, window: int) -> None:
    ids = torch.randint(7, (3, 12), generator=torch.Generator().manual_seed(1))
    sums = measure(subject, ids, start, [window])
    for row, each in enumerate(ids.tolist()):
        expected = by_hand(subject, each, start, window)
        found = {name.removesuffix(f"_{window}"): float(values[row]) for name, values in sums.items()}
        assert found.pop("count") == 12 - max(start, 1)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_few_rows_at_once_change_nothing(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(7, (5, 9), generator=torch.Generator().manual_seed(2))
    whole = measure(subject, ids, 2, [4])
    monkeypatch.setattr("probekit_plugins.repetition.predictions.MOST_VALUES", 1)
    parted = measure(subject, ids, 2, [4])
    assert all(torch.allclose(parted[name], values) for name, values in whole.items())


def test_greedy_text_never_repeats_wrongly(subject: probekit.Subject) -> None:
    """Its every token is the model's first choice, so wrep/l is 0 and rep/l that of the text."""
    subject = small(vocabulary=20)
    [new] = continued(subject, "greedy", new_tokens=20)
    found = means([measure(subject, torch.tensor([PROMPT + new]), 3, [8])])
    choices = {int(next_logits(subject, PROMPT + new[:place]).argmax()) for place in range(20)}
    if END not in choices:
        assert found["wrep_8"] == 0
        assert found["rep_8"] == found["text_rep_8"]


def test_certain_predictions_stay_finite() -> None:
    certain = torch.full((1, 2, 3), -torch.inf)
    certain[..., 1] = 0.0
    assert torch.isfinite(unlikelihood(certain, torch.tensor([[1, 2, 0]]), 1)).all()


# --- fine-tuning -----------------------------------------------------------------------------------------------------

TUNED = {
    "strategies": ["greedy"],
    "new_tokens": 8,
    "samples": 2,
    "random_draws": 2,
    "text_length": 16,
    "unlikelihood_steps": 12,
    "unlikelihood_batch": 4,
    "unlikelihood_pieces": 10,
    "unlikelihood_learning_rate": 0.001,
}


def test_fine_tuning_lowers_unlikelihood_more_than_its_control_and_leaves_the_subject(
    subject: probekit.Subject, assert_untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    options: dict[str, Any] = {**TUNED, "unlikelihood_steps": 25, "unlikelihood_pieces": 40}
    with assert_untouched(subject.model):
        result = Repetition(RepetitionOptions(**options)).run(subject, prompts_of(subject, PROMPT))
    held_out = {str(row["stage"]): row for row in result.tables["fine_tuning"]}
    assert list(held_out) == ["before", "mle", "unlikelihood"]
    assert float(held_out["unlikelihood"]["unlikelihood"] or 0) < float(held_out["mle"]["unlikelihood"] or 0)
    assert float(held_out["mle"]["nll"] or 0) < float(held_out["before"]["nll"] or 0)
    assert (result.metrics["training_pieces"], result.metrics["held_out_pieces"]) == (32, 8)
    assert [row["stage"] for row in result.tables["generated"]] == ["before", "mle", "unlikelihood"]
    assert any("the model wrote itself" in note for note in result.notes)


def test_the_first_step_is_adamw_on_the_loss_of_the_paper(subject: probekit.Subject) -> None:
    """By an independent computation: the loss written out token by token, and torch's AdamW on another copy."""
    alpha, rate = 0.7, 0.01
    options = RepetitionOptions(**{**TUNED, "unlikelihood_steps": 1, "unlikelihood_learning_rate": rate})  # type: ignore[arg-type]
    tuning = FineTuning(subject, prompts_of(subject, PROMPT)[0], options, probekit.Context())
    copy, losses = tuning.tuned(alpha, "unlikelihood")
    plain: Any = small().model
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    ids = tuning._training[tuning._batches[0]]
    terms = []
    for row in ids:
        probabilities = plain(input_ids=row[None]).logits[0].softmax(-1)
        for place in range(1, len(row)):
            loss = -probabilities[place - 1, row[place]].log()
            for index in set(row[:place].tolist()) - {int(row[place])}:
                loss = loss - alpha * (1 - probabilities[place - 1, index]).clamp(min=1e-5).log()
            terms.append(loss)
    total = torch.stack(terms).mean()
    assert float(losses[0, 0] + alpha * losses[0, 1]) == pytest.approx(float(total.detach()), rel=1e-4)
    total.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), rate).step()
    moved = dict(copy.model.named_parameters())
    for name, parameter in plain.named_parameters():
        sure = parameter.grad.abs() > 1e-5  # the first step is ±η: where the gradient is 0, its sign is rounding
        assert torch.allclose(moved[name][sure], parameter[sure], atol=2e-4), name


def test_text_is_split_by_piece(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    subject = probekit.load(str(tiny_gpt2()))
    (tmp_path / "text.txt").write_text("The sky is blue and the sea is green. " * 30, encoding="utf-8")
    options = RepetitionOptions(text=str(tmp_path / "text.txt"), text_length=16, unlikelihood_steps=1)
    tuning = FineTuning(subject, prompts_of(subject, [1])[0], options, probekit.Context())
    pieces = sum(tuning.sizes)
    assert pieces * 16 <= len(subject.tokenizer((tmp_path / "text.txt").read_text())["input_ids"])  # type: ignore[misc]
    assert tuning.sizes[1] == pieces // 5
    longer = options.model_copy(update={"text_length": 31})
    (tmp_path / "text.txt").write_text(subject.text(list(range(50, 90))), encoding="utf-8")
    with pytest.raises(probekit.UsageError, match="only one piece"):
        FineTuning(subject, prompts_of(subject, [1])[0], longer, probekit.Context())


def test_a_quantised_model_cannot_be_tuned(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()), quantization="int8")
    with pytest.raises(probekit.UsageError, match="unquantised"):
        Repetition(RepetitionOptions(**TUNED)).run(subject, prompts_of(subject, PROMPT))  # type: ignore[arg-type]


def test_a_learning_rate_that_breaks_it_is_one_sentence(subject: probekit.Subject) -> None:
    options = RepetitionOptions(**{**TUNED, "unlikelihood_learning_rate": 1e20})  # type: ignore[arg-type]
    with pytest.raises(
        probekit.AnalysisError, match=r"lower the learning rate \(-o unlikelihood_learning_rate=1e\+19\)"
    ):
        Repetition(options).run(subject, prompts_of(subject, PROMPT))


# --- runs that survive -----------------------------------------------------------------------------------------------


class At:
    """A listener that interrupts at the n-th sign of progress; the messages of the run are kept."""

    def __init__(self, moment: int) -> None:
        self._moment = moment
        self.seen: list[str] = []

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        self.seen.append(label)
        if len(self.seen) == self._moment:
            signal.raise_signal(signal.SIGINT)

    def message(self, text: str) -> None:
        pass


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "timings.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def begin(model: Path, listener: At) -> None:
    options = {**TUNED, "strategies": ["temperature", "contrastive", "greedy"], "new_tokens": 6}
    values = {
        "model": {"name": str(model)},
        "plugins": ["repetition"],
        "prompts": ["The sky is blue.", "Once upon a time"],
        "options": {"repetition": options},
    }
    plugins = Plugins()
    execute(resolve([("test", values)], plugins), plugins, Path("run"), listener, (), 0.0)


def test_an_interrupted_run_ends_with_the_same_bits(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while text is generated, in contrastive search, in both trainings and after them."""
    monkeypatch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole = At(0)
    begin(tiny_gpt2(), whole)
    expected = contents(tmp_path / "whole/run")
    trainings = [place for place, label in enumerate(whole.seen, 1) if label.startswith("fine-tuning")]
    searches = [place for place, label in enumerate(whole.seen, 1) if label.startswith("contrastive")]
    moments = [2, searches[3], trainings[5], trainings[-1], searches[-2], len(whole.seen)]
    for moment in moments:
        (tmp_path / f"at {moment}").mkdir()
        monkeypatch.chdir(tmp_path / f"at {moment}")
        with pytest.raises(KeyboardInterrupt):
            begin(tiny_gpt2(), At(moment))
        resumed = At(0)
        assert resume(Path("run"), Plugins(), resumed).status == "done"
        assert len(resumed.seen) < len(whole.seen)
        found = contents(Path("run"))
        assert sorted(found) == sorted(expected)
        assert [name for name in found if found[name] != expected[name]] == []
