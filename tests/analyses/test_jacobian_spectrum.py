"""The Jacobian spectrum against a Jacobian written out by torch, dense and matrix-free, and what its figures mean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit_plugins.jacobian_spectrum import JacobianSpectrum, JacobianSpectrumOptions, spectrum

IDS = [5, 17, 2, 40]


def gpt2(**settings: Any) -> probekit.Subject:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.1}
    config = GPT2Config(**{**sizes, **settings}, bos_token_id=0, eos_token_id=0)
    return probekit.Subject(GPT2LMHeadModel(config).double().eval())


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def measured(
    subject: probekit.Subject, ids: list[int] = IDS, seed: int = 0, **options: Any
) -> tuple[probekit.Result, dict[str, Any]]:
    """The result, and its one row."""
    checked = subject.check_ids(ids)
    prompt = probekit.Prompt("", checked, subject.tokens(checked))
    analysis = JacobianSpectrum(JacobianSpectrumOptions(**{"sites": "block.1", **options}), probekit.Context(seed))
    result = analysis.run(subject, [prompt])
    result.encode()  # finite, and storable
    return result, result.tables["sites"][0]


def jacobian(subject: probekit.Subject, site: str = "block.1", ids: list[int] = IDS) -> torch.Tensor:
    """`J` by torch's own reverse mode, `[T w, T d]`."""
    embeddings = subject.embed(torch.tensor([ids]))
    layer_map = subject.layer_map(site)
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.autograd.functional.jacobian(layer_map, embeddings)
    assert isinstance(found, torch.Tensor)
    return found.reshape(math.prod(found.shape[:3]), -1)


@pytest.mark.parametrize("site", ["block.0", "block.1", "norm", "logits"])
def test_dense_figures_are_those_of_the_jacobian(subject: probekit.Subject, site: str) -> None:
    expected = jacobian(subject, site)
    values = torch.linalg.svdvals(expected)
    result, row = measured(subject, sites=site, epsilons=[0.5, 0.1])
    assert result.tensors[f"0/{site}/values"].tolist() == pytest.approx(values.tolist(), rel=1e-8, abs=1e-12)
    assert row["method"] == "dense"
    assert row["entries"] == expected.shape[1] == 64
    assert row["gain"] == pytest.approx(float(expected.norm()) / 8, rel=1e-10)
    assert row["largest"] == pytest.approx(float(values[0]), rel=1e-10)
    for epsilon in (0.5, 0.1):
        assert row[f"null_dimension_{epsilon:g}"] == int((values <= epsilon * values[0]).sum())
    if site.startswith("block"):
        assert row["least_found"]
        assert row["condition_number"] == pytest.approx(float(values[0] / values[-1]), rel=1e-6)
        assert row["condition_number_at_least"] == row["condition_number"]


def test_a_norm_hides_directions_and_is_not_given_a_condition_number(subject: probekit.Subject) -> None:
    """A layer norm takes away the mean and the scale of each position: its Jacobian has exact zeros."""
    _, row = measured(subject, sites="norm")
    assert not row["least_found"]
    assert row["condition_number"] is None
    assert row["condition_number_at_least"] > 1e10
    assert row["null_dimension_0.001"] >= 2 * len(IDS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matrix_free_with_all_products_is_the_dense_reference(subject: probekit.Subject, seed: int) -> None:
    """As many products as there are directions: nothing is left to estimate but shares, which are exact on average."""
    _, dense = measured(subject)
    _, free = measured(subject, method="matrix-free", iterations=64, seed=seed)
    for figure in ("largest", "least", "condition_number", "gain"):
        assert free[figure] == pytest.approx(dense[figure], rel=1e-5)
    assert free["least_found"]
    assert free["gain_error"] == pytest.approx(0, abs=1e-6)


def test_matrix_free_extremes_and_gain_are_within_a_hundredth_where_the_problem_is_well_posed() -> None:
    subject = gpt2(n_embd=96, n_layer=1, initializer_range=0.02)
    with torch.no_grad():  # embeddings as long as those of a trained model: then the residual path is most of the map
        subject.anatomy.embedding.weight.mul_(4)
    ids = [5, 17, 2]
    _, dense = measured(subject, ids, sites="block.0", method="dense")
    assert dense["entries"] == 288
    assert dense["condition_number"] > 2
    for seed in range(3):
        _, free = measured(subject, ids, sites="block.0", method="matrix-free", iterations=120, seed=seed)
        assert free["largest"] == pytest.approx(dense["largest"], rel=1e-2)
        assert free["gain"] == pytest.approx(dense["gain"], rel=1e-2)
        assert free["least_found"]
        assert free["least"] == pytest.approx(dense["least"], rel=1e-2)
        assert free["condition_number"] == pytest.approx(dense["condition_number"], rel=1e-2)


def test_too_few_products_are_said_to_be_too_few(subject: probekit.Subject) -> None:
    _, dense = measured(subject)
    result, row = measured(subject, method="matrix-free", iterations=6)
    assert row["least"] > 1.01 * dense["least"], "six products cannot find it, or this test is none"
    assert not row["least_found"]
    assert row["condition_number"] is None
    assert row["condition_number_at_least"] < dense["condition_number"]
    assert any("lower bound" in note for note in result.notes)


def test_the_standard_errors_cover_the_truth() -> None:
    """Over 30 seeds, the gain lies within three standard errors almost always, and is not biased."""
    subject = gpt2(n_embd=24, n_layer=1)
    _, dense = measured(subject, sites="block.0")
    away = []
    for seed in range(30):
        _, row = measured(subject, sites="block.0", method="matrix-free", iterations=5, seed=seed)
        away.append((row["gain"] - dense["gain"]) / row["gain_error"])
    assert sum(abs(value) < 3 for value in away) >= 26
    assert abs(sum(away) / len(away)) < 1


def test_shares_of_weak_directions_agree_with_the_dense_count() -> None:
    subject = gpt2(n_embd=48, n_layer=2)
    epsilons = [0.5, 0.3, 0.1]
    _, dense = measured(subject, epsilons=epsilons)
    _, row = measured(subject, epsilons=epsilons, method="matrix-free", iterations=80, probes=16)
    for epsilon in epsilons:
        error = row[f"null_dimension_{epsilon:g}_error"]
        assert abs(row[f"null_dimension_{epsilon:g}"] - dense[f"null_dimension_{epsilon:g}"]) <= 4 * error + 2


def test_small_singular_values_of_an_fp32_model_are_called_noise() -> None:
    """The same layer in float64 and in float32: what fp32 cannot resolve is not reported as a condition number."""
    exact = gpt2(n_layer=3, initializer_range=0.6)
    _, double = measured(exact, sites="block.2")
    single = probekit.Subject(exact.model.float())
    _, row = measured(single, sites="block.2")
    assert row["noise_floor"] > 1e6 * double["noise_floor"]
    assert row["least_found"] == (row["least"] > row["noise_floor"])
    assert row["condition_number_at_least"] <= 1.01 * row["largest"] / row["noise_floor"]


def test_auto_is_dense_up_to_the_limit(subject: probekit.Subject) -> None:
    assert measured(subject, dense_entries=64)[1]["method"] == "dense"
    assert measured(subject, dense_entries=63, iterations=8)[1]["method"] == "matrix-free"


def test_probes_in_parts_are_the_same_probes(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    _, together = measured(subject, method="matrix-free", iterations=10)
    monkeypatch.setattr(spectrum, "BASIS_BYTES", 1)
    _, apart = measured(subject, method="matrix-free", iterations=10)
    assert apart.keys() == together.keys()
    for name, value in together.items():
        assert apart[name] == (pytest.approx(value, rel=1e-8) if isinstance(value, float) else value)


def test_the_seed_decides(subject: probekit.Subject) -> None:
    first, again, other = (
        measured(subject, method="matrix-free", iterations=6, seed=seed)[1]["gain"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_site_by_its_path_has_the_same_spectrum(subject: probekit.Subject) -> None:
    by_name, _ = measured(subject, sites="block.1")
    by_path, _ = measured(subject, sites="transformer.h.1")
    assert torch.equal(by_name.tensors["0/block.1/values"], by_path.tensors["0/transformer.h.1/values"])


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("sites=block.9", "There is no site 'block.9'"),
        ("epsilons=[]", "The option 'epsilons' of jacobian-spectrum"),
        ("epsilons=[1.5]", "The option 'epsilons.0' of jacobian-spectrum"),
        ("method=svd", "The option 'method' of jacobian-spectrum is 'svd'"),
        ("probes=1", "The option 'probes' of jacobian-spectrum is 1"),
        ("iterations=0", "The option 'iterations' of jacobian-spectrum is 0"),
    ],
)
def test_bad_options_are_one_sentence(
    probekit_cli: Any, tiny_gpt2: Callable[..., Path], tmp_path: Path, option: str, sentence: str
) -> None:
    ended = probekit_cli(
        "run", "--model", tiny_gpt2(), "--plugin", "jacobian-spectrum", "-o", option, "--output", tmp_path / "run"
    )
    assert ended.code == 2
    assert ended.sentence.startswith(sentence)


def test_a_run_reports_every_block_and_trained_against_random(
    probekit_cli: Any, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    ended = probekit_cli(
        "run", "--model", tiny_gpt2(), "--plugin", "jacobian-spectrum", "--prompt", "The sky", "--prompt", "A sea",
        "--compare-random", "--output", tmp_path / "pair", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for side in ("trained", "random"):
        saved = probekit.read_run(tmp_path / "pair" / side).result
        assert {row["site"] for row in saved.tables["sites"]} == {"block.0", "block.1", "block.2"}
        assert {row["prompt"] for row in saved.tables["sites"]} == {0, 1}
        page = json.loads((tmp_path / "pair" / side / "analyses/jacobian-spectrum/page.json").read_text())
        kinds = [block["type"] for block in page["blocks"]]
        assert kinds.count("lines") == 8, "condition, gain, null space and spectra, for each of the prompts"
        assert saved.finding.startswith("At block.0 the condition number is ")


@pytest.mark.data
def test_training_makes_a_layer_worse_conditioned(data_folder: Path) -> None:
    """A finding, held here as seen: every block of `stories260k`, against its untrained self."""
    folder = str(data_folder / "models/stories260k")
    counts = []
    for weights in ("pretrained", "random"):
        subject = probekit.load(folder, dtype="float64", weights=weights)
        ids = subject.encode("The sky is blue.")[0].tolist()
        _, row = measured(subject, ids, sites="block.-1")
        counts.append(row["null_dimension_0.001"])
    assert counts[0] >= 100 > 20 >= counts[1]
