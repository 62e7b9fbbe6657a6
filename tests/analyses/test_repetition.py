"""Repetition: its figures, the random tokens beside them, and the sequences that it reads from others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import probekit
from probekit_plugins.repeats import seq_rep, times_before
from probekit_plugins.repetition import Repetition, RepetitionOptions
from probekit_plugins.repetition.figures import (
    distinct,
    diversity,
    longest_repeat,
    of_group,
    of_sequence,
    pooled_diversity,
    self_bleu,
)
from probekit_plugins.repetition.summary import RandomTokens

A = [1, 2, 3, 1, 2, 3, 1, 4]
QUICK = {"strategies": ["greedy", "temperature"], "new_tokens": 12, "samples": 2, "random_draws": 3, "text_length": 8}

sequences = st.lists(st.integers(0, 5), max_size=40)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_of_a_sequence_worked_out_by_hand() -> None:
    """1 2 3 1 2 3 1 4: of 8 tokens 4 differ, of 7 pairs 4 (12 23 31 14), of 6 triples 4, of 5 quadruples 4."""
    assert [seq_rep(A, n) for n in (1, 2, 3, 4)] == pytest.approx([1 / 2, 3 / 7, 1 / 3, 1 / 5])
    assert diversity(A) == pytest.approx((4 / 7) * (2 / 3) * (4 / 5))
    assert longest_repeat(A) == 4  # 1 2 3 1 stands at 0 and at 3: the two overlap
    assert times_before(A) == [0, 0, 0, 1, 1, 1, 1, 0]


def test_simctgs_released_code_leaves_the_last_ngram_out() -> None:
    """Its loop ends while the last n-gram is still to come: 6 pairs, 5 triples, 4 quadruples of the 8 tokens."""
    assert [seq_rep(A, n, drop_last=True) for n in (1, 2, 3, 4)] == pytest.approx([1 / 2, 3 / 6, 2 / 5, 1 / 4])
    assert seq_rep([1, 2], 2, drop_last=True) is None


def test_a_sequence_too_short_for_an_ngram_has_none() -> None:
    assert of_sequence([7, 7]) == {
        "seq_rep_1": 0.5,
        "seq_rep_2": 0.0,
        "seq_rep_3": None,
        "seq_rep_4": None,
        "longest_repeat": 1,
        "diversity": None,
    }
    assert set(of_sequence([]).values()) == {None, 0}
    assert set(of_group([]).values()) == {None}


def test_distinct_n_is_divided_by_tokens_as_published_or_by_ngrams() -> None:
    """Pairs of `1 2 1 2` and `2 1`: 12 21 12 21, two of four different; tokens: six."""
    pair = [[1, 2, 1, 2], [2, 1]]
    assert distinct(pair, 2) == pytest.approx(2 / 6)
    assert distinct(pair, 2, over="ngrams") == pytest.approx(2 / 4)
    assert distinct(pair, 1) == distinct(pair, 1, over="ngrams") == pytest.approx(2 / 6)
    assert distinct([[1], [2]], 2) is None


def test_pooled_diversity_counts_ngrams_within_each_text() -> None:
    """Unique n-grams are those of each text, summed: 4 + 6 of 7 + 7 pairs, 4 + 5 of 6 + 6 triples, …"""
    other = [5, 6, 5, 6, 5, 7, 8, 9]
    unique = {n: len({tuple(other[i : i + n]) for i in range(9 - n)}) for n in (2, 3, 4)}
    expected = math.prod((4 + unique[n]) / (2 * (9 - n)) for n in (2, 3, 4))
    assert pooled_diversity([A, other]) == pytest.approx(expected)
    assert pooled_diversity([[1, 2], [3]]) is None


def test_self_bleu_is_one_for_equal_texts_and_little_for_unlike_ones() -> None:
    assert self_bleu([A, A, A]) == pytest.approx(1.0)
    assert (self_bleu([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]) or 0) < 0.1
    assert self_bleu([A]) is None
    assert self_bleu([[1, 2], [1, 2]]) is None


def test_self_bleu_is_bleu_by_its_formula() -> None:
    """Two texts of six: precisions 4/6, 3/5, 2/4, 1/3 both ways, no brevity penalty."""
    assert self_bleu([[1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 8]]) == pytest.approx((4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


@given(st.integers(1, 4), st.integers(1, 40))
def test_a_constant_sequence_repeats_all_but_one_ngram(n: int, length: int) -> None:
    ids = [3] * length
    assert seq_rep(ids, n) == (pytest.approx(1 - 1 / (length - n + 1)) if length >= n else None)
    assert longest_repeat(ids) == length - 1


@given(sequences)
def test_shares_are_shares_and_agree_with_each_other(ids: list[int]) -> None:
    shares = [seq_rep(ids, n) for n in (1, 2, 3, 4)]
    present = [share for share in shares if share is not None]
    assert all(0 <= share < 1 for share in present)
    assert 0 <= (diversity(ids) or 0) <= 1
    longest = longest_repeat(ids)
    assert all(((seq_rep(ids, n) or 0) > 0) == (n <= longest) for n in range(1, len(ids) + 1))


@given(sequences)
def test_the_longest_repeat_is_that_of_an_exhaustive_search(ids: list[int]) -> None:
    places = range(len(ids))
    lengths = [
        length
        for first, second in product(places, places)
        if first < second
        for length in range(1, len(ids) - second + 1)
        if ids[first : first + length] == ids[second : second + length]
    ]
    assert longest_repeat(ids) == max(lengths, default=0)


@given(st.lists(sequences, min_size=1, max_size=4), st.permutations(range(6)))
def test_other_names_for_the_tokens_change_nothing(group: list[list[int]], names: list[int]) -> None:
    renamed = [[names[index] for index in ids] for ids in group]
    assert [of_sequence(ids) for ids in renamed] == [of_sequence(ids) for ids in group]
    assert of_group(renamed) == pytest.approx(of_group(group))


@pytest.mark.parametrize(("vocabulary", "length"), [(50, 30), (7, 12), (2048, 64)])
def test_random_tokens_come_to_the_closed_form(vocabulary: int, length: int) -> None:
    """E[unique tokens] = V (1 − (1 − 1/V)^L)."""
    random = RandomTokens(RepetitionOptions(random_draws=2000), probekit.Context())
    expected = 1 - vocabulary * (1 - (1 - 1 / vocabulary) ** length) / length
    assert random.of_sequence(length, vocabulary)["seq_rep_1"] == pytest.approx(expected, rel=0.05)
    of_one = random.of_group([length], vocabulary)["distinct_1"]
    assert of_one == pytest.approx(1 - expected, rel=0.05)


def test_random_tokens_are_those_of_the_seed() -> None:
    first, second, other = (RandomTokens(RepetitionOptions(), probekit.Context(seed)) for seed in (0, 0, 1))
    assert first.of_sequence(20, 30) == second.of_sequence(20, 30) != other.of_sequence(20, 30)


# --- what it reads from others ---------------------------------------------------------------------------------------


@pytest.fixture
def subject(tiny_gpt2: Callable[..., Path]) -> probekit.Subject:
    return probekit.load(str(tiny_gpt2(tokenizer=False)))


def prompts_of(subject: probekit.Subject, *every: list[int]) -> list[probekit.Prompt]:
    tensors = [subject.check_ids(ids) for ids in every]
    return [probekit.Prompt("", ids, subject.tokens(ids)) for ids in tensors]


def measured(
    subject: probekit.Subject, results: dict[str, probekit.Result] | None = None, **options: Any
) -> probekit.Result:
    context = probekit.Context(results=results)
    chosen = RepetitionOptions(**({"strategies": [], "random_draws": 3} | options))
    return Repetition(chosen, context).run(subject, prompts_of(subject, [5, 6, 7, 8]))


def sequence(ids: list[int], **labels: Any) -> probekit.TokenSequence:
    return probekit.TokenSequence(ids, [str(index) for index in ids], labels)


def test_decoded_sequences_are_grouped_by_analysis_site_and_rank(subject: probekit.Subject) -> None:
    found = probekit.Result(
        sequences={
            "prompt": [sequence([1, 2, 3, 4], prompt=0, site="block.0")],
            "recovered": [
                sequence([1, 2, 3, 4], prompt=0, site="block.0", restart=0, rank=0, text="1234"),
                sequence([9, 9, 9, 4], prompt=0, site="block.0", restart=1, rank=0, text="9994"),
                sequence([5, 5, 5, 5], prompt=0, site="block.0", restart=0, rank=1),
                sequence([6, 6, 7, 8], prompt=0, site="block.1", restart=0, rank=0),
            ],
            "vocabulary": [sequence([3, 7])],
        }
    )
    result = measured(subject, {"inverter": found})
    rows = {(row["analysis"], row["name"], row["site"], row["rank"]): row for row in result.tables["decoded"]}
    assert list(rows) == [
        ("inverter", "recovered", "block.0", 0),
        ("inverter", "recovered", "block.0", 1),
        ("inverter", "recovered", "block.1", 0),
    ]
    first = rows["inverter", "recovered", "block.0", 0]
    assert (first["sequences"], first["length"], first["token_accuracy"]) == (2, 4, 0.625)
    assert (first["seq_rep_1_min"], first["seq_rep_1_median"], first["seq_rep_1_max"]) == (0, 0.25, 0.5)
    assert result.metrics["inverter/recovered/block.0/seq_rep_1_median"] == 0.25
    quality = {row["quality"]: row for row in result.tables["quality"]}
    assert (quality["poor"]["sequences"], quality["good"]["sequences"]) == (2, 1)
    assert quality["poor"]["seq_rep_1_mean"] == pytest.approx((0.5 + 0.25) / 2)
    assert quality["poor"]["above_prompt"] == 1.0
    assert "fewer than half of the prompt's: inverter 0.38" in result.finding


def test_a_walk_counts_at_its_end_and_its_steps_stand_apart(subject: probekit.Subject) -> None:
    walk = [sequence(ids, site="block.0", walker=0, step=step) for step, ids in ((0, [1, 2]), (10, [3, 3]))]
    walk[-1].labels["text"] = "33"
    walk.append(sequence([4, 4], site="block.0", walker=1, step=5))  # stopped earlier
    lens = [sequence([1, 1, 1], site="norm", decoder=decoder) for decoder in ("nearest", "cosine")]
    result = measured(subject, {"walk": probekit.Result(sequences={"walk": walk, "lens": lens})})
    rows = {(row["name"], row["variant"]): row for row in result.tables["decoded"]}
    assert set(rows) == {("walk", None), ("lens", "decoder nearest"), ("lens", "decoder cosine")}
    assert (rows["walk", None]["sequences"], rows["walk", None]["seq_rep_1_min"]) == (2, 0.5)
    steps = [(row["step"], row["seq_rep_1_median"]) for row in result.tables["decoded_steps"]]
    assert steps == [(0, 0.0), (5, 0.5), (10, 0.5)]


def test_given_text_is_cut_begun_as_the_tokenizer_does_and_measured(
    tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    subject = probekit.load(str(tiny_gpt2()))
    file = tmp_path / "text.txt"
    file.write_text("The sky is blue. " * 40, encoding="utf-8")
    ids = subject.tokenizer(file.read_text())["input_ids"]  # type: ignore[misc]
    result = measured(subject, text=str(file), text_length=16, text_pieces=3, windows=[4])
    pieces = [piece.ids for piece in result.sequences["text"]]
    count = len(ids) // 16
    assert pieces == [ids[16 * index : 16 * index + 16] for index in (0, count // 3, 2 * count // 3)]
    row = next(row for row in result.tables["given"] if row["text"] == "text")
    assert row["seq_rep_4_mean"] == pytest.approx(sum(seq_rep(piece, 4) or 0 for piece in pieces) / 3)
    assert row["rep_4"] is not None
    assert row["seq_rep_4_random"] == pytest.approx(0, abs=0.1)


def test_the_page_is_drawn_from_what_was_saved(
    subject: probekit.Subject, tmp_path: Path, tiny_gpt2: Callable[..., Path]
) -> None:
    (tmp_path / "text.txt").write_text("The sky is blue. " * 40, encoding="utf-8")
    subject = probekit.load(str(tiny_gpt2()))
    steps = [sequence([1, step, 1], site="block.0", step=step) for step in (0, 1)]
    options = {**QUICK, "text": str(tmp_path / "text.txt"), "unlikelihood_steps": 2, "unlikelihood_batch": 2}
    result = measured(subject, {"walk": probekit.Result(sequences={"walk": steps})}, **options)
    for name, content in result.encode().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    page = probekit.Page("repetition")
    Repetition(RepetitionOptions(**options)).report(probekit.Result.read(tmp_path), page)  # type: ignore[arg-type]
    text = json.dumps(page.to_json(), allow_nan=False)
    for figure in ("seq-rep-4 by strategy", "continued by each strategy", "MLE alone", "seq-rep-1 over steps"):
        assert figure in text
    assert page.to_json() == probekit.Page.from_json(page.to_json()).to_json()


# --- through the command line ----------------------------------------------------------------------------------------

PROMPTS = ("--prompt", "The sky is blue.", "--prompt", "Once upon a time")
SMALL = tuple(part for key, value in QUICK.items() for part in ("-o", f"repetition.{key}={json.dumps(value)}"))


def test_another_analysis_of_the_run_is_read_whatever_the_order(
    probekit_cli: Callable[..., Any], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    inverter = ("-o", "gradient-inverter.steps=5", "-o", "gradient-inverter.restarts=2")
    run = ("run", "--model", tiny_gpt2(), "--plugin", "repetition", "--plugin", "gradient-inverter", *inverter)
    ended = probekit_cli(*run, *PROMPTS, *SMALL, "--output", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    metrics = json.loads(ended.out)["analyses"]["repetition"]["metrics"]
    saved = probekit.read_run(tmp_path / "run")
    own = [s.ids for s in saved.results["gradient-inverter"].sequences["recovered"] if s.labels["rank"] == 0]
    expected = sorted(seq_rep(ids, 1) or 0 for ids in own)
    assert metrics["gradient-inverter/recovered/block.0/seq_rep_1_median"] == pytest.approx(
        (expected[1] + expected[2]) / 2
    )
    assert "greedy/seq_rep_4_mean" in metrics


def test_saved_runs_are_compared_by_their_models(
    probekit_cli: Callable[..., Any], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    """Trained against random against int8: each row is labelled by its run's model, and its figures are that run's."""
    for name, extra in {"trained": (), "random": ("--weights", "random"), "int8": ("--quantization", "int8")}.items():
        model = ("run", "--model", tiny_gpt2(), "--plugin", "repetition", *extra)
        ended = probekit_cli(*model, *PROMPTS, *(part.removeprefix("repetition.") for part in SMALL), "--output", name)
        assert ended.code == 0, ended.err
    runs = json.dumps(["trained", "random", "int8"])
    chosen = ("-o", f"source={runs}", "-o", "strategies=[]", "-o", "random_draws=3")
    ended = probekit_cli("run", "--model", tiny_gpt2(), "--plugin", "repetition", *chosen, "--output", tmp_path / "all")
    assert ended.code == 0, ended.err
    rows = probekit.read_run(tmp_path / "all").results["repetition"].tables["generated"]
    labels = {row["run"]: (row["weights"], row["precision"], row["depth"]) for row in rows}
    assert labels == {
        "trained": ("pretrained", "float32", "3 blocks"),
        "random": ("random", "float32", "3 blocks"),
        "int8": ("pretrained", "int8", "3 blocks"),
    }
    for name in labels:
        theirs = probekit.read_run(name).results["repetition"].tables["generated"]
        ours = [row for row in rows if row["run"] == name]
        for figure in ("strategy", "seq_rep_1_mean", "diversity_min", "self_bleu", "rep_16", "nll"):
            assert [row[figure] for row in ours] == [row[figure] for row in theirs]
    assert "Runs side by side" in (tmp_path / "all/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("source=nowhere", "no run directory"),
        ("text=nowhere.txt", "The text 'nowhere.txt' cannot be read"),
        ("text=short.txt", "which is less than a piece of 31"),
        ("text=latin.txt", "is not UTF-8"),
        ("strategies=gredy", "expected 'greedy'"),
        ("windows=0", "expected windows of at least 1 token"),
        ("new_tokens=64", "the model's context is 32; generate at most 23 (-o new_tokens=23)"),
        ("text_length=40", "has room for 32"),
    ],
)
def test_bad_input_is_one_sentence(
    options: str,
    sentence: str,
    probekit_cli: Callable[..., Any],
    tiny_gpt2: Callable[..., Path],
) -> None:
    Path("short.txt").write_text("The sky", encoding="utf-8")
    Path("latin.txt").write_bytes("Él está".encode("latin-1") * 100)
    extra = ("-o", "text=short.txt") if options.startswith("text_length") else ()
    length = ("-o", "text_length=31") if options.startswith("text=") else ()
    quiet = () if options.startswith(("strategies", "new_tokens")) else ("-o", "strategies=[]")
    ended = probekit_cli(
        "run", "--model", tiny_gpt2(), "--plugin", "repetition", "-o", options, *extra, *length, *quiet
    )
    assert ended.code in (1, 2)
    assert sentence in ended.err.splitlines()[-1] or sentence in ended.sentence


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_without_anything_done_is_no_source(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = probekit.Run(Path("empty"))
    monkeypatch.setattr("probekit_plugins.repetition.sources.read_run", lambda path: empty)
    with pytest.raises(probekit.UsageError, match="nothing to read"):
        measured(subject, source="empty")


def test_torch_is_not_needed_to_list_it(probekit_process: Callable[..., Any]) -> None:
    ended = probekit_process(code="import sys, probekit_plugins.repetition; print('torch' in sys.modules)")
    assert ended.out.strip() == "False", ended.err


def test_a_model_that_cannot_generate_is_measured_without(subject: probekit.Subject) -> None:
    """Left at the default, generation is skipped and that is said; asked for, it is an error."""
    body = probekit.Subject(subject.model.transformer)  # type: ignore[arg-type, union-attr]
    context = probekit.Context()
    prompts = prompts_of(body, [5, 6, 7, 8])
    result = Repetition(RepetitionOptions(random_draws=3), context).run(body, prompts)
    assert any("does not generate text" in note for note in result.notes)
    assert "generated" not in result.tables
    assert result.tables["given"][0].get("nll") is None
    with pytest.raises(probekit.UsageError, match="does not generate text"):
        Repetition(RepetitionOptions(strategies=["greedy"], new_tokens=4), context).run(body, prompts)


def test_figures_are_finite_or_none(subject: probekit.Subject) -> None:
    result = Repetition(RepetitionOptions(**QUICK)).run(subject, prompts_of(subject, [5], [6, 6]))  # type: ignore[arg-type]
    assert result.encode()
    prompts = next(row for row in result.tables["texts"] if row["kind"] == "prompts")
    assert (prompts["seq_rep_2"], prompts["nll"]) == (None, None)
    assert torch.isfinite(torch.tensor([row["nll"] for row in result.tables["generated"]])).all()


def test_nan_names_the_weight(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2(tokenizer=False)))
    with torch.no_grad():
        subject.model.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan  # type: ignore[index, union-attr]
    with pytest.raises(probekit.AnalysisError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight"):
        measured(subject)
