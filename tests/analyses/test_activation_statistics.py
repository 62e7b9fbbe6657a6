"""The activation statistics against plain torch on all activations at once, and where there is little to measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.activation_statistics import ActivationStatistics, ActivationStatisticsOptions
from probekit_plugins.activation_statistics.formulas import Classes, mean_cosine, participation_ratio
from probekit_plugins.activation_statistics.histogram import Magnitudes
from probekit_plugins.activation_statistics.largest import Largest
from probekit_plugins.activation_statistics.moments import Covariance, Directions
from tests.analyses.activations import PROMPTS, analysed, batch, drawn, one_by_one, ran
from tests.analyses.recovering import gpt2

SITES = "block.0,block.1"
# A class of the histogram is a bfloat16: half a step of its mantissa.
CLOSE = 2**-8


def statistics(**options: Any) -> ActivationStatistics:
    return ActivationStatistics(ActivationStatisticsOptions(**options))


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


@pytest.fixture(scope="module")
def result(subject: probekit.Subject) -> probekit.Result:
    return ran(statistics(sites=SITES, positions=4), subject)


@pytest.mark.parametrize("site", SITES.split(","))
def test_norms_and_magnitudes_are_those_of_all_activations_together(
    subject: probekit.Subject, result: probekit.Result, site: str
) -> None:
    rows = torch.cat(one_by_one(subject, site))
    norms = rows.norm(dim=1)
    metrics = {name.removeprefix(f"{site}/"): value for name, value in result.metrics.items()}
    assert metrics["tokens"] == len(rows) == sum(map(len, PROMPTS))
    assert metrics["norm_mean"] == pytest.approx(float(norms.mean()), rel=1e-5)
    assert metrics["norm_max"] == pytest.approx(float(norms.max()), rel=1e-5)
    assert metrics["magnitude_max"] == pytest.approx(float(rows.abs().max()), rel=1e-5)
    assert metrics["magnitude_median"] == pytest.approx(float(rows.abs().median()), rel=CLOSE)
    for name, share in (("norm_5_percent", 0.05), ("norm_median", 0.5), ("norm_95_percent", 0.95)):
        expected = norms.sort().values[math.ceil(share * len(norms)) - 1]
        assert metrics[name] == pytest.approx(float(expected), rel=CLOSE)


def test_norms_by_position_are_means_over_the_prompts_that_reach_it(
    subject: probekit.Subject, result: probekit.Result
) -> None:
    norms = [rows.norm(dim=1) for rows in one_by_one(subject, "block.1")]
    expected = [torch.stack([each[place] for each in norms if len(each) > place]).mean() for place in range(4)]
    torch.testing.assert_close(result.tensors["norm_by_position"][1], torch.stack(expected), rtol=1e-5, atol=0)
    assert result.tensors["tokens_by_position"].tolist() == [6, 5, 4, 3]


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_effective_dimension_and_mean_cosine_are_those_of_all_tokens_that_count(
    subject: probekit.Subject, skip: int
) -> None:
    found = ran(statistics(sites="block.1", skip_first=skip), subject).metrics
    rows = torch.cat([rows[skip:] for rows in one_by_one(subject, "block.1")])
    eigenvalues = torch.linalg.eigvalsh(torch.cov(rows.T))
    assert found["block.1/effective_dimension"] == pytest.approx(
        float(eigenvalues.sum() ** 2 / eigenvalues.square().sum()), rel=1e-5
    )
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T)[~torch.eye(len(rows), dtype=torch.bool)]
    assert found["block.1/mean_cosine"] == pytest.approx(float(cosines.mean()), rel=1e-5)
    assert found["tokens_kept"] == len(rows)


def test_the_largest_figures_are_found_with_where_they_stand(
    subject: probekit.Subject, result: probekit.Result
) -> None:
    figures = [
        (-abs(float(value)), prompt, position, dimension, float(value))
        for prompt, rows in enumerate(one_by_one(subject, "block.1"))
        for position, row in enumerate(rows)
        for dimension, value in enumerate(row)
    ]
    expected = sorted(figures)[:10]
    found = [row for row in result.tables["largest"] if row["site"] == "block.1"]
    places = [(row["prompt"], row["position"], row["dimension"]) for row in found]
    assert places == [place[1:4] for place in expected]
    assert [row["value"] for row in found] == pytest.approx([place[4] for place in expected], rel=1e-5)
    assert [row["token_id"] for row in found] == [PROMPTS[place[1]][place[2]] for place in expected]
    assert [row["token"] for row in found] == [subject.tokens([int(row["token_id"] or 0)])[0] for row in found]
    median = float(result.metrics["block.1/magnitude_median"] or 0)
    assert [row["over_median"] for row in found] == pytest.approx([-place[0] / median for place in expected], rel=1e-5)


def test_outlier_features_are_dimensions_that_pass_the_threshold_in_enough_tokens(subject: probekit.Subject) -> None:
    rows = torch.cat(one_by_one(subject, "block.1")).abs()
    bound = float(rows.quantile(0.9))
    found = ran(statistics(sites="block.1", outlier_magnitude=bound, outlier_share=0.25), subject)
    shares = (rows >= bound).double().mean(0)
    expected = {dimension for dimension, share in enumerate(shares.tolist()) if share >= 0.25}
    table = found.tables["outlier_features"]
    assert {row["dimension"] for row in table} == expected
    assert found.metrics["block.1/outlier_features"] == len(expected)
    assert 0 < len(expected) < rows.shape[1]
    for row in table:
        assert row["share_of_tokens"] == pytest.approx(float(shares[int(row["dimension"] or 0)]))
        assert row["largest"] == pytest.approx(float(rows[:, int(row["dimension"] or 0)].max()), rel=1e-5)
    torch.testing.assert_close(found.tensors["share_above/block.1"], shares)


def test_a_massive_activation_is_counted_and_named() -> None:
    values = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    values[:, 0, 5] = -250.0
    found = analysed(statistics(), batch({"block.0": values}))
    assert found.metrics["block.0/massive"] == 3
    assert found.tables["largest"][0] | {"over_median": 0, "token": ""} == {
        "site": "block.0", "rank": 0, "value": -250.0, "over_median": 0, "dimension": 5, "position": 0, "prompt": 0,
        "token_id": 0, "token": "",
    }  # fmt: skip
    assert "is -250, at block.0 in dimension 5 at position 0" in found.finding
    assert "1 of 1 sites have massive activations" in found.finding


def test_large_activations_are_not_massive_where_all_are_large() -> None:
    found = analysed(statistics(), batch({"block.0": torch.full((2, 3, 4), 500.0)}))
    assert found.metrics["block.0/massive"] == 0
    assert "no activation is massive" in found.finding


def test_figures_do_not_depend_on_the_batches(subject: probekit.Subject, result: probekit.Result) -> None:
    """One prompt at a time and all at once: the same but for the rounding of sums."""
    checked = [subject.check_ids(ids) for ids in PROMPTS]
    analysis = statistics(sites=SITES, positions=4)
    for number, ids in enumerate(checked):
        activations = subject.capture(ids, SITES.split(","))
        mask = torch.ones_like(ids, dtype=torch.bool)
        analysis.update(probekit.ActivationBatch(activations, ids, mask, torch.tensor([number]), subject.tokens))
    alone = analysis.finish()
    assert alone.metrics == pytest.approx(result.metrics, rel=1e-5)
    strip = {"value": None, "over_median": None}
    assert [row | strip for row in alone.tables["largest"]] == [row | strip for row in result.tables["largest"]]


def test_an_analysis_can_be_used_again(subject: probekit.Subject, result: probekit.Result) -> None:
    analysis = statistics(sites=SITES, positions=4)
    first = ran(analysis, subject).encode()
    assert ran(analysis, subject).encode() == first == result.encode()


# --- little, odd and broken -------------------------------------------------------------------------------------------


def test_one_token_has_sizes_and_says_what_is_missing(subject: probekit.Subject, tmp_path: Path) -> None:
    for skip in (0, 1):
        analysis = statistics(skip_first=skip)
        found = ran(analysis, subject, [[5]])
        assert found.metrics["block.0/effective_dimension"] is None
        assert found.metrics["block.0/mean_cosine"] is None
        assert float(found.metrics["block.0/norm_mean"] or 0) > 0
        assert "In 1 token of 1 prompt," in found.finding
        assert any("need at least two tokens that count" in note for note in found.notes)
        assert drawn(analysis, found, tmp_path)


def test_activations_that_are_all_the_same_use_no_dimension() -> None:
    row = torch.rand(16, generator=torch.Generator().manual_seed(0))
    found = analysed(statistics(), batch({"block.0": row.expand(5, 7, 16)}))
    assert found.metrics["block.0/effective_dimension"] is None
    assert found.metrics["block.0/mean_cosine"] == pytest.approx(1.0)
    assert any("the same activation at block.0" in note for note in found.notes)


def test_activations_of_zero_are_measured_and_drawn(tmp_path: Path) -> None:
    analysis = statistics()
    found = analysed(analysis, batch({"block.0": torch.zeros(2, 3, 4)}))
    assert "all activations are zero" in found.finding
    assert found.tables["largest"] == []
    assert found.metrics["block.0/magnitude_max_over_median"] is None
    assert drawn(analysis, found, tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_activation_that_is_not_finite_ends_it_in_a_sentence_with_its_site(value: float) -> None:
    values = torch.zeros(2, 3, 4)
    values[1, 2, 0] = value
    with pytest.raises(
        probekit.AnalysisError, match=r"at block\.1 is NaN or infinite, first at position 2 of prompt 2;"
    ):
        analysed(statistics(), batch({"block.0": torch.zeros(2, 3, 4), "block.1": values}))


def test_further_axes_of_a_site_are_one_width() -> None:
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    several = analysed(statistics(), batch({"block.0": values}))
    assert several.metrics == analysed(statistics(), batch({"block.0": values.flatten(2)})).metrics
    assert several.metrics["block.0/width"] == 20


def test_a_width_that_depends_on_the_prompt_is_refused() -> None:
    first, second = (batch({"attention": torch.ones(1, length, length)}) for length in (3, 4))
    with pytest.raises(probekit.AnalysisError, match="attention has 4 figures for a token where it had 3"):
        analysed(statistics(), first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_more(dtype: torch.dtype) -> None:
    """Squares of these overflow in fp16 and vanish in its sums; the values themselves are exact."""
    values = (torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(0)) * 1000).to(dtype)
    narrow = analysed(statistics(), batch({"block.0": values}))
    assert narrow.metrics == analysed(statistics(), batch({"block.0": values.double()})).metrics


def test_covariances_that_do_not_fit_are_left_out_the_widest_first() -> None:
    generator = torch.Generator().manual_seed(0)
    activations = {
        name: torch.randn(4, 8, width, generator=generator) for name, width in (("a", 4), ("b", 64), ("c", 8))
    }
    memory = 8 * (4**2 + 8**2) / 2**30
    found = analysed(statistics(covariance_memory=memory), batch(activations))
    missing = {site: found.metrics[f"{site}/effective_dimension"] is None for site in activations}
    assert missing == {"a": False, "b": True, "c": False}
    assert any("No effective dimension of b:" in note for note in found.notes)
    none = analysed(statistics(covariance_memory=0), batch(activations))
    assert {none.metrics[f"{site}/effective_dimension"] for site in activations} == {None}
    assert any("was not asked for" in note for note in none.notes)


# --- the pieces -------------------------------------------------------------------------------------------------------


def classes_of(counted: Magnitudes) -> Classes:
    return Classes(**{name: tensor.numpy() for name, tensor in counted.tensors().items()})


def test_magnitudes_are_told_to_within_their_class_over_all_of_fp32() -> None:
    values = torch.logspace(-37, 38, 4001, base=10, dtype=torch.float64)
    counted = Magnitudes()
    for part in values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))].split(97):
        counted.add(-part)
    for share in (0.001, 0.25, 0.5, 0.9, 1.0):
        expected = float(values[math.ceil(share * len(values)) - 1])
        assert classes_of(counted).quantile(share) == pytest.approx(expected, rel=CLOSE)
    assert int(classes_of(counted).counts.sum()) == len(values)
    assert classes_of(counted).above(1.0) == pytest.approx(int((values > 1).sum()), abs=1)


def test_magnitudes_of_bfloat16_are_exact_and_zero_and_the_greatest_are_there() -> None:
    values = torch.tensor([0.0, 1.0078125, 3.0, 3.38953139e38, 3.40282347e38])
    counted = Magnitudes()
    counted.add(values)
    classes = classes_of(counted)
    assert classes.quantile(0.1) == 0.0
    assert classes.quantile(0.4) == 1.0078125
    assert classes.quantile(1.0) == pytest.approx(3.4e38, rel=CLOSE)


def test_a_covariance_does_not_cancel_where_the_mean_is_large() -> None:
    rows = torch.randn(3000, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 13)
    covariance = Covariance(12)
    for part in (rows + 1e7).split([1, 2, 500, 1497, 1000]):
        covariance.add(part)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(rows.T))
    expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert participation_ratio(covariance.count, *covariance.tensor().tolist()) == pytest.approx(expected, rel=1e-7)


def test_the_mean_cosine_is_unbiased_for_few_tokens() -> None:
    """Of independent directions the mean over many draws is 0, where the plain square of the mean is 1/n."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(2000):
        rows = torch.randn(3, 8, generator=generator, dtype=torch.float64)
        directions = Directions(8)
        directions.add(rows, rows.norm(dim=1))
        found.append(mean_cosine(directions.count, directions.squared_length()) or 0.0)
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / math.sqrt(len(found))
    assert abs(mean) < 4 * error < 0.02


def test_of_equal_figures_the_earlier_ones_are_kept_whatever_comes_first() -> None:
    rows = torch.tensor([[2.0, -3.0], [3.0, 1.0], [-3.0, 3.0]])
    positions, prompts, tokens = torch.tensor([0, 1, 0]), torch.tensor([1, 1, 0]), torch.tensor([7, 8, 9])
    kept = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        for parts in ([3], [1, 2], [1, 1, 1]):
            largest = Largest(3)
            for part in torch.tensor(order).split(parts):
                largest.add(rows[part], positions[part], prompts[part], tokens[part])
            dimension, position, prompt, token = largest.tensors()["places"].tolist()
            kept.append(list(zip(prompt, position, dimension, token, strict=True)))
    assert all(places == [(0, 0, 0, 9), (0, 0, 1, 9), (1, 0, 1, 7)] for places in kept)


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_a_recording_gives_the_same_result_as_the_model(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, probekit_cli: Callable[..., Any]
) -> None:
    texts = tmp_path / "texts"
    texts.write_text("The sky is blue.\nThe sea is green and wide.\nA little girl.\n")
    model = ["--model", tiny_gpt2(), "--prompts", texts]
    plugins = ["--plugin", "activation-statistics", "--plugin", "layer-similarity"]
    assert probekit_cli("record", *model, "--output", tmp_path / "recording").code == 0
    assert probekit_cli("run", *plugins, *model, "--output", tmp_path / "live").code == 0
    recording = ["--activations", tmp_path / "recording"]
    assert probekit_cli("run", *plugins, *recording, "--output", tmp_path / "recorded").code == 0
    for name in ("activation-statistics", "layer-similarity"):
        for file in ("result.json", "tensors.safetensors", "page.json"):
            live, recorded = (tmp_path / run / "analyses" / name / file for run in ("live", "recorded"))
            assert live.read_bytes() == recorded.read_bytes(), f"{name}: {file}"


def test_the_page_shows_sizes_positions_outliers_and_dimensions(
    subject: probekit.Subject, result: probekit.Result, tmp_path: Path
) -> None:
    blocks = drawn(statistics(sites=SITES, positions=4), result, tmp_path)
    [heatmap] = [block for block in blocks if block["type"] == "heatmap"]
    assert (heatmap["x_labels"], heatmap["y_labels"]) == (["0", "1", "2", "3"], SITES.split(","))
    means, median = result.tensors["norm_by_position"], result.metrics["block.1/norm_median"]
    assert heatmap["values"][1] == pytest.approx([float(norm) / float(median or 1) for norm in means[1]])
    lines = {block["caption"]: block["series"] for block in blocks if block["type"] == "lines"}
    [series] = lines["The effective dimension by site"]
    assert [y for _, y in series["points"]] == [
        result.metrics[f"{site}/effective_dimension"] for site in SITES.split(",")
    ]
    numbers = [
        row[block["columns"].index("prompt")]
        for block in blocks
        if block["type"] == "table" and "prompt" in block["columns"]
        for row in block["rows"]
    ]
    assert min(int(number) for number in numbers) >= 1


def test_figures_that_every_prompt_has_are_one_row_of_the_page(tmp_path: Path) -> None:
    """As those of a first `<s>`, whose activation is the same in every prompt of a causal model."""
    values = torch.zeros(7, 2, 4)
    values[:, 0, 3] = 40.0
    values[5, 1, 2] = 30.0
    made = batch({"block.0": values})
    made.input_ids[:, 0] = 1
    analysis = statistics()
    [table] = [
        block
        for block in drawn(analysis, analysed(analysis, made), tmp_path)
        if block["type"] == "table" and block["columns"][-1] == "prompt"
    ]
    assert [(row[1], row[-1]) for row in table["rows"]] == [(40.0, "1 and 6 more"), (30.0, "6")]


@pytest.mark.parametrize(
    "options", [{"positions": 0}, {"largest": 0}, {"outlier_share": 2}, {"skip_first": -1}], ids=str
)
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ActivationStatisticsOptions(**options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_figures_are_those_of_the_cpu() -> None:
    values = torch.randn(4, 50, 32, generator=torch.Generator().manual_seed(0))
    here = analysed(statistics(), batch({"block.0": values}))
    there = analysed(statistics(), batch({"block.0": values.cuda()}))
    assert there.metrics == pytest.approx(here.metrics, rel=1e-9)
    assert there.tables["largest"] == here.tables["largest"]
