"""Whole runs of the autoencoder: what is trained, measured and saved, live and on recordings, resumed and refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit.testing import tiny_subject
from probekit_plugins.autoencoder import saved
from probekit_plugins.autoencoder.figures import fraction_of_variance, squared_errors
from probekit_plugins.autoencoder.labels import agreement, clusters

WORDS = [
    "the",
    "sky",
    "is",
    "blue",
    "and",
    "the",
    "sea",
    "wide",
    "all",
    "his",
    "men",
    "at",
    "night",
    "under",
    "a",
    "tree",
    "in",
    "May",
]
SMALL: dict[str, Any] = {
    "widths": [2, 6],
    "steps": 30,
    "learning_rate": 0.03,
    "batch": 64,
    "seeds": 2,
    "sites": "block.1",
}


def prompts(count: int = 40) -> list[str]:
    """Prompts of several lengths, none twice."""
    at = [[(number + 3 * place) % len(WORDS) for place in range(4 + number % 5)] for number in range(count)]
    return [" ".join(WORDS[place] for place in places) for places in at]


def run(model: str | Path, output: Path, **options: Any) -> probekit.Run:
    given = options.pop("prompts", prompts())
    return probekit.run(
        model=str(model), plugins=["autoencoder"], prompts=given, options=SMALL | options, output=output
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the page, which shows times."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "page.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> probekit.Run:
    return run(model, tmp_path_factory.mktemp("done") / "run", variants=["plain", "variational", "contrastive"])


def rows(found: probekit.Run, table: str = "trained") -> list[dict[str, Any]]:
    return list(found.result.tables[table])


def test_each_variant_is_trained_at_each_size_with_each_seed(done: probekit.Run) -> None:
    names = [row["name"] for row in rows(done)]
    assert names == [
        f"{variant}-{width}-seed{seed}"
        for variant in ("plain", "variational", "contrastive")
        for width in (2, 6)
        for seed in (0, 1)
    ]
    settings = {row["setting"]: row for row in rows(done, "settings")}
    plain = [row["fve"] for row in rows(done) if row["name"].startswith("plain-6")]
    assert settings["plain-6"]["fve"] == pytest.approx(sum(plain) / 2)
    assert (settings["plain-6"]["fve_least"], settings["plain-6"]["fve_greatest"]) == (min(plain), max(plain))


def test_the_card_of_a_training_says_what_it_was(done: probekit.Run) -> None:
    row = rows(done)[0]
    assert (row["site"], row["variant"], row["size"], row["seed"], row["steps"]) == ("block.1", "plain", 2, 0, 30)
    assert row["examples"] == 30 * 64
    assert row["parameters"] > 0
    assert done.result.seconds["training block.1/plain-2-seed0"] > 0
    assert done.result.metrics["block.1/documents"] == 40
    assert done.result.metrics["block.1/documents_held_out"] == 4
    cards = done.path / "analyses" / "autoencoder" / "files" / "block.1" / row["name"] / "cfg.json"
    card = json.loads(cards.read_text(encoding="utf-8"))
    assert (card["figures"]["steps"], card["figures"]["seed"], card["figures"]["fve"]) == (30, 0, row["fve"])
    known = {name: done.result.metrics[f"block.1/{name}"] for name in ("documents", "documents_held_out", "examples")}
    assert {"source": "the prompts", **known}.items() <= card["data"].items()


def test_what_is_saved_gives_the_figures_of_the_report(done: probekit.Run, model: Path) -> None:
    """Captured again, by hand: the held-out documents are told by what is left of the training."""
    subject = probekit.load(str(model))
    for row in rows(done):
        if row["variant"] == "contrastive":
            continue
        folder = done.path / "analyses" / "autoencoder" / "files" / "block.1" / row["name"]
        found = saved.read(folder)
        assert found.error == row["error"]
        assert found.weights == subject.facts["weights_sha256"]
        figures = json.loads((folder / saved.CONFIG).read_text())["figures"]
        assert figures["kl_spliced"] == row["kl_spliced"]
        per_document = [subject.capture(ids, ["block.1"])["block.1"][0, 1:] for ids in map(subject.encode, prompts())]
        every = torch.cat(per_document)
        errors = squared_errors(every, found.autoencoder.reconstruct(every))
        whole = fraction_of_variance(errors, squared_errors(every, every.double().mean(0)))
        assert whole == pytest.approx(row["fve"], abs=0.25)


def test_the_control_of_other_tokens_codes_explains_nothing(done: probekit.Run) -> None:
    for row in rows(done):
        if row["variant"] != "contrastive":
            assert row["fve_shuffled"] < min(0.05, row["fve"])
        if row["name"].startswith("plain-6"):
            assert row["fve"] > 0.3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(model: Path, tmp_path: Path) -> None:
    options = {"variants": ["plain", "variational"], "widths": [3], "seeds": 1}
    one, again = (run(model, tmp_path / name, **options) for name in ("one", "again"))
    first = contents(one.path / "analyses")
    assert first == contents(again.path / "analyses")
    other = probekit.run(
        model=str(model),
        plugins=["autoencoder"],
        prompts=prompts(),
        options=SMALL | options,
        output=tmp_path / "other",
        seed=1,
    )
    name = "autoencoder/files/block.1/plain-3-seed0/weights.safetensors"
    assert contents(other.path / "analyses")[name] != first[name]


def test_a_recording_gives_what_the_live_model_gives_but_for_what_takes_the_model(model: Path, tmp_path: Path) -> None:
    live = run(model, tmp_path / "live", splice_tokens=0)
    probekit.record(model=str(model), prompts=prompts(), sites="blocks", output=tmp_path / "recording")
    recorded = probekit.run(
        activations=tmp_path / "recording", plugins=["autoencoder"], options=SMALL, output=tmp_path / "recorded"
    )
    assert rows(recorded) == rows(live)
    folder = Path("analyses/autoencoder/files")
    one, other = contents(live.path / folder), contents(recorded.path / folder)
    assert {name: content for name, content in one.items() if name.endswith("safetensors")} == {
        name: content for name, content in other.items() if name.endswith("safetensors")
    }
    weights = probekit.load(str(model)).facts["weights_sha256"]
    assert saved.read(recorded.path / folder / "block.1" / "plain-2-seed0").weights == weights


def test_without_prompts_to_speak_of_the_model_writes_its_own_text(model: Path, tmp_path: Path) -> None:
    found = run(model, tmp_path / "run", prompts=["the sky"], pieces=20, length=10, widths=[2], seeds=1)
    assert found.result.metrics["block.1/documents"] == 20
    assert "the model wrote 20 pieces of text itself" in " ".join(found.result.notes)


def test_a_text_takes_the_place_of_the_prompts(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 12), encoding="utf-8")
    found = run(model, tmp_path / "run", text=str(tmp_path / "text.txt"), length=8, widths=[2], seeds=1)
    assert found.result.metrics["block.1/documents"] > 20
    assert "held out of the text" in found.result.finding


@pytest.mark.parametrize(("views", "site"), [("segments", "halves of block.1"), ("sites", "block.0 and block.1")])
def test_contrastive_views_of_pairs(model: Path, tmp_path: Path, views: str, site: str) -> None:
    sites = "block.0,block.1" if views == "sites" else "block.1"
    found = run(model, tmp_path / "run", variants=["contrastive"], views=views, widths=[4], seeds=1, sites=sites)
    [row] = rows(found)
    assert row["site"] == site
    assert 0 <= row["retrieval_untrained"] <= 1
    assert 0 <= row["retrieval"] <= 1
    assert row["among"] == (4 if views == "segments" else found.result.metrics[f"{site}/examples_held_out"])


def test_labels_score_clusters_and_bring_views_together(model: Path, tmp_path: Path) -> None:
    found = run(
        model, tmp_path / "run", variants=["plain", "contrastive"], labels="token", widths=[6], seeds=1, held_out=0.5
    )
    plain, contrastive = rows(found)
    assert plain["agreement"] > 0.1
    assert contrastive["agreement"] > plain["agreement"]
    assert {row["label"] for row in rows(found, "scatter")} - {""}


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_run_ends_with_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    options = {"variants": ["plain", "variational"], "widths": [3], "seeds": 1, "steps": 40}
    whole = run(model, tmp_path / "whole", **options)
    steps = 0
    step = torch.optim.AdamW.step

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 55:  # in the midst of the second training
            if killed:
                raise SystemExit
            signal.raise_signal(signal.SIGINT)
        return step(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counted)
        if killed:
            assert run(model, tmp_path / "broken", **options).status == "failed"
        else:
            with pytest.raises(KeyboardInterrupt):
                run(model, tmp_path / "broken", **options)
    resumed = probekit.resume(tmp_path / "broken")
    assert resumed.status == "done"
    assert contents(resumed.path / "analyses") == contents(whole.path / "analyses")


def test_a_saved_autoencoder_is_measured_as_well(done: probekit.Run, model: Path, tmp_path: Path) -> None:
    folder = done.path / "analyses" / "autoencoder" / "files" / "block.1" / "plain-6-seed1"
    found = run(model, tmp_path / "run", widths=[2], seeds=1, saved=[str(folder)])
    [_, row] = rows(found)
    known = next(row for row in rows(done) if row["name"] == "plain-6-seed1")
    assert (row["name"], row["variant"]) == ("plain-6-seed1", "saved")
    assert row["fve"] == pytest.approx(known["fve"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"variants": ["contrastive"], "views": "sites"}, "are two sites, but 1 are named"),
        ({"labels": "nowhere.txt"}, "none of token, position, document, and no file that can be read"),
        ({"text": "nowhere.txt"}, "cannot be read"),
        ({"saved": ["nowhere"]}, "There is no autoencoder in 'nowhere'"),
        ({"skip_first": 50}, "nothing is left to train on"),
        ({"learning_rate": 1e30, "clip": 1e30}, "is not finite at step"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    model: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    found = run(model, tmp_path / "run", **options)
    assert sentence in found.failures["autoencoder"]
    assert "Traceback" not in found.failures["autoencoder"]
    assert not (found.path / "analyses" / "autoencoder" / "traceback.txt").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": "nowhere.txt"}, "no file that can be read"),
        ({"variants": ["plain", "topk"], "features": 8, "active": [2, 9]}, "has 9 of 8 features active"),
        ({"saved": ["nowhere"]}, "There is no autoencoder in 'nowhere'"),
        ({"saved": ["plain-6-seed1"], "sites": "block.0"}, r"is of block\.1, which is not among the sites"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    done: probekit.Run,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    sentence: str,
) -> None:
    def never(*given: Any, **named: Any) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    monkeypatch.chdir(done.path / "analyses" / "autoencoder" / "files" / "block.1")
    assert re.search(sentence, run(model, tmp_path / "run", **options).failures["autoencoder"])


@pytest.mark.parametrize(
    "options", [{"widths": [6, 6]}, {"active": "2,4,2"}, {"penalties": [1.0, 1.0000001]}, {"variants": "plain,plain"}]
)
def test_two_trainings_of_one_name_are_refused(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(probekit.UsageError, match=r"each size once|each variant once"):
        run(model, tmp_path / "run", **options)


@pytest.mark.parametrize("name", ["plain-2", "plain-2-seed0", "none"])
def test_a_saved_autoencoder_has_a_row_of_its_own_whatever_its_folder_is_called(
    done: probekit.Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = done.path / "analyses" / "autoencoder" / "files" / "block.1" / "plain-6-seed1"
    shutil.copytree(files, tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    found = run(model, tmp_path / "run", widths=[2], seeds=1, saved=["."])
    assert [row["name"] for row in rows(found)] == ["plain-2-seed0", f"{name} (2)"]
    assert [(row["setting"], row["seeds"]) for row in rows(found, "settings")] == [("plain-2", 1), (f"{name} (2)", 1)]


def test_one_example_is_enough_to_measure_by() -> None:
    subject = tiny_subject()
    documents = [torch.tensor([[number, number + 1, number + 2]]) for number in range(12)]
    analysis = probekit.Plugins().analysis("autoencoder")
    options = analysis.options_model(**SMALL, skip_first=2, labels="token")
    texts = [probekit.Prompt("", ids, subject.tokens(ids)) for ids in documents]
    found = analysis(options, probekit.Context()).run(subject, texts)
    assert found.metrics["block.1/examples_held_out"] == 1
    assert "scatter" not in found.tables
    assert [row["fve"] for row in found.tables["trained"]] == [None] * 4


def test_codes_that_are_all_the_same_agree_with_no_labels_and_warn_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = torch.arange(40) % 4
        found = clusters(torch.zeros(40, 3), labels, 0)
        assert found is not None
        assert agreement(found, labels) == 0
