"""Fine-tuning under codes: languages whose entropy is known, the control that must fail, resuming, and what is kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import probekit
from probekit.testing import tiny_subject
from probekit_plugins import copies
from probekit_plugins.control_codes import ControlCodes, ControlCodesOptions
from probekit_plugins.control_codes.codes import codes
from probekit_plugins.control_codes.finetuning import Tuning
from probekit_plugins.control_codes.known import known
from probekit_plugins.control_codes.prefixes import prefixes
from tests.control_codes import languages

QUICK = {"steps": 100, "learning_rate": 8e-3, "measured": 30, "penalty_form": []}


def run(subject: probekit.Subject, path: Path, seed: int = 0, **options: object) -> probekit.Result:
    chosen = ControlCodesOptions(codes=str(path), **options)  # type: ignore[arg-type]
    result = ControlCodes(chosen, probekit.Context(seed)).run(subject, [languages.prompt(subject)])
    result.encode()
    return result


def rows(result: probekit.Result, table: str, model: str) -> list[dict[str, float]]:
    return [row for row in result.tables[table] if row["model"] == model]  # type: ignore[misc]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return languages.codes_file(tmp_path_factory.mktemp("languages"), count=300)


@pytest.fixture(scope="module")
def tuned(three: Path) -> probekit.Result:
    return run(languages.subject(), three, seeds=1, save=True, **QUICK)


def test_fine_tuning_tells_languages_apart_and_shuffled_codes_do_not(tuned: probekit.Result) -> None:
    [before], [found], [control] = (rows(tuned, "accuracy", m) for m in ("before", "fine-tuned", "codes shuffled"))
    assert before["probability"] == pytest.approx(1 / 3, abs=0.05)
    assert found["right"] == found["texts"] == 90
    assert found["gap"] > 1
    assert control["probability"] == pytest.approx(1 / 3, abs=0.15)
    assert abs(control["gap"]) < 0.03
    assert found["own"] < control["own"], "a code helps to predict its texts"
    assert "100% of 90 held-out texts" in tuned.finding


def test_no_model_predicts_a_language_below_its_entropy(tuned: probekit.Result) -> None:
    for row in rows(tuned, "by_code", "fine-tuned"):
        if row["known"] == row["code"]:
            assert row["nll"] > languages.entropy(int(str(row["known"])[1])) - 0.05


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_yardstick_three_languages_over_three_seeds(tmp_path: Path) -> None:
    path = languages.codes_file(tmp_path, count=1000)
    shuffled = []
    for seed in range(3):
        options = {"steps": 400, "learning_rate": 3e-3, "seeds": 3, "measured": 100, "penalty_form": []}
        result = run(languages.subject(seed), path, seed, **options)
        for found in rows(result, "accuracy", "fine-tuned"):
            assert found["right"] == found["texts"] == 300
        for row in rows(result, "by_code", "fine-tuned"):
            assert row["nll"] < 1.87 if row["known"] == row["code"] else row["nll"] > 4.0
        shuffled += rows(result, "accuracy", "codes shuffled")
    assert fmean(row["probability"] for row in shuffled) == pytest.approx(1 / 3, abs=0.04)
    assert fmean(row["accuracy"] for row in shuffled) == pytest.approx(1 / 3, abs=0.25)
    assert all(abs(row["gap"]) < 0.03 for row in shuffled)


def test_only_the_texts_own_tokens_are_learnt() -> None:
    subject = copies.copied(languages.subject())
    before = [[33], [34, 35]]
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    module = Tuning(subject.model, before)
    found = module.loss([1, 0], texts)
    expected = torch.tensor(0.0)
    for code, text in zip([1, 0], texts, strict=True):
        ids = torch.tensor([[*before[code], *text]])
        labels = torch.where(torch.arange(ids.shape[1]) < len(before[code]), -100, ids)
        expected = expected + subject.model(input_ids=ids, labels=labels).loss * len(text)
    assert found.item() == pytest.approx(expected.item() / 8, rel=1e-5)
    assert not module.train().model.training, "no dropout"


def test_the_subject_is_not_changed(three: Path, assert_untouched: Callable[..., object]) -> None:
    subject = languages.subject()
    with assert_untouched(subject.model):  # type: ignore[attr-defined]
        run(subject, three, seeds=1, steps=2, penalty_form="corrected", new_tokens=2, measured=2)


def test_no_text_is_on_both_sides(tmp_path: Path) -> None:
    """Also not one that is there twice, or under two codes."""
    texts = languages.texts(0, 40)
    for name, own in (("a", texts + texts[:20]), ("b", texts[20:] + languages.texts(1, 20))):
        (tmp_path / f"{name}.txt").write_text("\n".join(own))
    path = tmp_path / "c.toml"
    path.write_text(
        "".join(f'[codes.{n}]\ntemplate = "c{i} {{text}}"\ntexts = "{n}.txt"\n' for i, n in enumerate("ab"))
    )
    subject, options = languages.subject(), ControlCodesOptions(codes=str(path), steps=1, held_out=0.3)
    found = known(subject, prefixes(subject, codes(options)), options)
    assert found is not None
    measured = {tuple(ids) for ids in found.texts}
    assert measured
    assert not measured & {tuple(ids) for _, ids in found.training}
    assert len(found.texts) == sum(count for _, count in found.counts.values())
    without = ControlCodesOptions(codes=str(path))
    everything = known(subject, prefixes(subject, codes(without)), without)
    assert everything is not None
    assert len(everything.texts) == 40 + 40, "each once for each code, where nothing is trained"


class Store:
    """A run's store in memory, which asks to stop after so many steps."""

    def __init__(self, steps: int | None) -> None:
        self.saved: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self.left = steps

    def read(self, kind: str, label: str) -> dict[str, torch.Tensor] | None:
        return copy.deepcopy(self.saved.get((kind, label)))

    def write(self, kind: str, label: str, state: dict[str, torch.Tensor]) -> None:
        self.saved[kind, label] = {name: tensor.detach().clone() for name, tensor in state.items()}

    def due(self) -> bool:
        return False

    def stop_asked(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(three: Path) -> None:
    subject = languages.subject(blocks=1, width=32)
    options = ControlCodesOptions(
        codes=str(three), steps=4, seeds=2, measured=3, save=True, new_tokens=3, temperature=1.0, samples=2
    )

    def attempt(store: Store) -> probekit.Result:
        return ControlCodes(options, probekit.Context(1, store=store)).run(subject, [languages.prompt(subject)])

    whole = attempt(Store(None)).encode()
    store, stops = Store(None), 0
    for stops in range(20):
        store.left = 3 * stops  # what is read back is counted as steps once more
        try:
            found = attempt(store).encode()
        except KeyboardInterrupt:
            continue
        break
    assert stops > 3
    assert found == whole


def test_the_kept_model_loads_and_is_the_one_that_was_measured(
    tuned: probekit.Result, three: Path, tmp_path: Path
) -> None:
    for name, content in tuned.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]
    folder = tmp_path / "fine-tuned"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    loaded = probekit.load(str(folder))
    again = run(loaded, three, penalty_form=[], measured=100)
    [kept], [was] = rows(again, "by_code", "before")[:1], rows(tuned, "by_code", "fine-tuned")[:1]
    assert kept["nll"] == pytest.approx(was["nll"], abs=0.05), "all texts against the held-out ones"
    [nll] = (row["nll"] for row in rows(again, "likelihood", "before") if row["code"] == "L1")
    [expected] = (row["nll"] for row in rows(tuned, "likelihood", "fine-tuned") if row["code"] == "L1")
    assert nll == pytest.approx(expected, rel=1e-5)


def test_the_command_line_keeps_a_model_and_runs_it(
    three: Path, tuned: probekit.Result, tmp_path: Path, probekit_cli: Callable[..., Any]
) -> None:
    for name, content in tuned.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]
    always = (
        "--plugin",
        "control-codes",
        "--prompt",
        "w1 w2",
        "-o",
        f"codes={three}",
        "-o",
        "penalty_form=[]",
        "--json",
    )
    quick = ("-o", "steps=2", "-o", "seeds=1", "-o", "measured=2", "-o", "save=true")
    first, second = tmp_path / "first", tmp_path / "second"
    ended = probekit_cli("run", "--model", tmp_path / "fine-tuned", *always, *quick, "--output", first)
    assert ended.code == 0, ended.err
    kept = first / "analyses" / "control-codes" / "files" / "fine-tuned"
    ended = probekit_cli("run", "--model", kept, *always, "-o", "measured=2", "--output", second)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["analyses"]["control-codes"]["metrics"]["before/accuracy"] == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 1}, "Fine-tuning takes texts of at least two codes, and none has any"),
        ({"texts": {"L0": "a.txt"}, "only": "L0,L1"}, "Attribution takes texts of at least two codes, and 1 has"),
        ({"texts": {"L0": "nowhere.txt", "L1": "a.txt"}}, "nowhere.txt' cannot be read"),
        ({"texts": {"L0": "one.txt", "L1": "a.txt"}, "steps": 1}, "1 texts of the code 'L0' 0 are left to train on"),
        ({"texts": {"L0": "empty.txt", "L1": "a.txt"}}, "0 texts of the code 'L0'"),
    ],
)
def test_too_few_texts_are_refused_before_anything_is_trained(
    options: dict[str, object], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text('[codes.L0]\ntemplate = "c0 {text}"\n[codes.L1]\ntemplate = "c1 {text}"')
    Path("a.txt").write_text("\n".join(languages.texts(0, 20)))
    Path("one.txt").write_text("w1 w2 w3")
    Path("empty.txt").write_text("\n\n")
    with pytest.raises(probekit.UsageError, match=expected):
        run(languages.subject(), Path("c.toml"), **options)


def test_a_model_that_cannot_be_trained_is_refused(three: Path) -> None:
    subject = languages.subject()
    subject.model.is_loaded_in_8bit = True  # type: ignore[assignment]
    with pytest.raises(probekit.UsageError, match="needs an unquantised model"):
        run(subject, three, steps=1)


def test_the_page_draws_everything_and_names_the_model_that_wrote(three: Path) -> None:
    subject = languages.subject(blocks=1, width=32)
    options = ControlCodesOptions(codes=str(three), steps=3, seeds=2, measured=5, new_tokens=4)
    analysis = ControlCodes(options)
    result = analysis.run(subject, [languages.prompt(subject), languages.prompt(subject, "w3 w4")])
    page = probekit.Page("test")
    analysis.report(result, page)
    kinds = [block["type"] for block in page.blocks]
    assert {"tokens", "heatmap", "band", "table"} <= set(kinds)
    prose = " ".join(block["text"] for block in page.blocks if block["type"] == "prose")
    assert "Written by the fine-tuned model" in prose
    [first] = [block for block in page.blocks if block["type"] == "tokens"][:1]
    assert [row["label"] for row in first["rows"]] == ["prompt", "none", "L0", "L1", "L2"]


def test_a_tiny_subject_in_training_is_written_with_as_one_at_rest() -> None:
    """The random state and the mode of the caller's model stay as they are."""
    subject = tiny_subject(training=True)
    modes = [module.training for module in subject.model.modules()]
    ids = subject.encode("The sky")
    options = ControlCodesOptions(only=["Horror", "Legal"], new_tokens=2, temperature=1.0, samples=2)
    ControlCodes(options).run(subject, [probekit.Prompt("The sky", ids, subject.tokens(ids))])
    assert [module.training for module in subject.model.modules()] == modes
