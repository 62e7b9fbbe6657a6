"""Activations from a file: what is read, what is refused and in what words, and what comes back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import probekit
from probekit_plugins.exact_inverter import ExactInverter, ExactInverterOptions
from tests.analyses.recovering import OTHER, PROMPT, SITE, few_samples, gpt2, run, target_of

Recovered = Callable[..., probekit.Result]


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


@pytest.fixture(scope="module")
def one(subject: probekit.Subject) -> torch.Tensor:
    return target_of(subject, PROMPT).activations


@pytest.fixture(scope="module")
def other(subject: probekit.Subject) -> torch.Tensor:
    return target_of(subject, OTHER).activations


@pytest.fixture
def recovered(subject: probekit.Subject, tmp_path: Path) -> Recovered:
    """`recovered({name: tensor}, …)`: what the analysis gives of a file of these, drawn as well."""

    def of(tensors: dict[str, torch.Tensor], **options: Any) -> probekit.Result:
        path = tmp_path / "activations.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
        return drawn(subject, activations=str(path), **options)

    return of


def drawn(subject: probekit.Subject, **options: Any) -> probekit.Result:
    options = {"sites": SITE, **options}
    result = run(subject, [1, 2], **options)
    result.encode()  # which refuses NaN
    page = probekit.Page("exact-inverter")
    ExactInverter(ExactInverterOptions(**options), probekit.Context()).report(result, page)
    json.dumps(page.to_json(), allow_nan=False)
    return result


def ids_of(result: probekit.Result) -> list[list[int]]:
    return [sequence.ids for sequence in result.sequences["recovered"]]


def statuses_of(result: probekit.Result) -> list[Any]:
    return [row["status"] for row in result.tables["positions"]]


def test_one_prompt(recovered: Recovered, one: torch.Tensor) -> None:
    result = recovered({"a": one})
    assert ids_of(result) == [PROMPT]
    assert statuses_of(result) == ["verified"] * 8
    [row] = result.tables["prompts"]
    assert row["exact"] is row["token_accuracy"] is row["false_positives"] is None
    assert result.metrics[f"{SITE}/exact_rate"] is result.metrics[f"{SITE}/false_positives"] is None
    assert "prompt" not in result.sequences
    assert "by the proof alone" in result.notes[0]
    assert "exactly" not in result.finding


def test_tensors_of_several_shapes_in_the_order_of_their_names(
    recovered: Recovered, one: torch.Tensor, other: torch.Tensor
) -> None:
    result = recovered({"b": one, "a": other[:5], "c": torch.stack([other, one])})
    assert ids_of(result) == [OTHER[:5], PROMPT, OTHER, PROMPT]
    assert set(statuses_of(result)) == {"verified"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_every_floating_point(recovered: Recovered, one: torch.Tensor, dtype: torch.dtype) -> None:
    """What is less than fp32 is known up to its rounding; 8 bits are refused in one sentence or read."""
    try:
        result = recovered({"a": one.to(dtype)})
    except probekit.UsageError:
        assert dtype == torch.float8_e4m3fn
        return
    assert set(ids_of(result)[0]) == set(PROMPT)
    assert set(statuses_of(result)) == {"verified"}


def test_a_file_of_fp32_and_a_model_of_fp64(one: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "activations.safetensors"
    save_file({"a": one}, path)
    result = drawn(gpt2(torch.float64), activations=str(path), tolerance=1e-5)
    assert ids_of(result) == [PROMPT]
    assert statuses_of(result) == ["verified"] * 8


def test_rows_of_nan_are_unknown_and_those_at_the_end_are_no_part(recovered: Recovered, one: torch.Tensor) -> None:
    values = one.clone()
    values[2] = torch.nan
    values[6:, 3] = torch.inf
    result = recovered({"a": values})
    assert ids_of(result) == [PROMPT[:6]]
    assert [row["known"] for row in result.tables["positions"]] == [True, True, False, True, True, True]
    assert statuses_of(result) == ["verified"] * 6


def test_padding_beyond_the_context_is_no_part(recovered: Recovered, one: torch.Tensor) -> None:
    assert ids_of(recovered({"a": torch.cat([one, one * torch.nan, one * torch.nan])})) == [PROMPT]


def test_known_positions_may_be_given_for_a_file(recovered: Recovered, one: torch.Tensor) -> None:
    result = recovered({"a": one}, positions=[0, 1, 3])
    assert ids_of(result)[0][:4] == PROMPT[:4]
    assert statuses_of(result) == ["verified"] * 4 + ["undetermined"] * 4


def test_known_positions_that_the_file_does_not_know(recovered: Recovered, one: torch.Tensor) -> None:
    values = one.clone()
    values[2] = torch.nan
    assert set(statuses_of(recovered({"a": values}, positions=[2]))) == {"undetermined"}


def test_noise_that_a_file_is_said_to_hold(recovered: Recovered, one: torch.Tensor) -> None:
    drawn = torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
    noisy = one + 0.1 * one.square().mean(-1, keepdim=True).sqrt() * drawn
    result = recovered({"a": noisy}, noise=0.1)
    assert ids_of(result) == [PROMPT]
    assert statuses_of(result).count("verified") >= 6
    assert statuses_of(recovered({"a": noisy})).count("verified") == 0


def test_activations_of_another_model_are_not_verified(recovered: Recovered) -> None:
    result = recovered({"a": target_of(gpt2(seed=3), PROMPT).activations})
    assert "verified" not in statuses_of(result)
    assert result.metrics[f"{SITE}/verified_share"] == 0
    assert result.tables["prompts"][0]["reasons"]


def test_activations_whose_squares_are_infinite_are_refused(recovered: Recovered, one: torch.Tensor) -> None:
    """Anything would be within a bound of infinity."""
    with pytest.raises(probekit.UsageError):
        recovered({"a": one * 1e30})


REFUSED: dict[str, tuple[Callable[[torch.Tensor], dict[str, torch.Tensor]], dict[str, Any], str]] = {
    "no tensors": (lambda a: {}, {}, "has no tensors"),
    "another width": (lambda a: {"a": a[:, :9]}, {}, "width 9, but those of this model at block.1 have 32"),
    "integers": (lambda a: {"a": a.int()}, {}, r"is int32 of shape \[8, 32\]; expected activations in floating point"),
    "one dimension": (lambda a: {"a": a[0]}, {}, r"of shape \[32\]"),
    "four dimensions": (lambda a: {"a": a[None, None]}, {}, r"of shape \[1, 1, 8, 32\]"),
    "no positions": (lambda a: {"a": a[:0]}, {}, r"of shape \[0, 32\]"),
    "nothing known": (lambda a: {"a": a * torch.nan}, {}, "at every position, so that nothing is known"),
    "too long": (lambda a: {"a": a.repeat(3, 1)}, {}, "24 positions, but the model's context is 16"),
    "several sites": (lambda a: {"a": a}, {"sites": "blocks"}, "belong to one site, but 2 are named"),
    "rounding": (lambda a: {"a": a}, {"rounding": "int8"}, "option rounding is for the prompts' activations"),
    "positions": (lambda a: {"a": a}, {"positions": [8]}, r"The option positions is \[8\]"),
    "a site that is none": (lambda a: {"a": a}, {"sites": "block.7"}, "no site"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_refused_in_one_sentence(recovered: Recovered, one: torch.Tensor, what: str) -> None:
    tensors, options, sentence = REFUSED[what]
    with pytest.raises(probekit.UsageError, match=sentence) as raised:
        recovered(tensors(one), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all" * 9, b"\x10" + bytes(7) + b'{"a":1}'])
def test_what_is_no_file_of_tensors_is_one_sentence(
    subject: probekit.Subject, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(probekit.UsageError, match="cannot be read as safetensors") as raised:
        drawn(subject, activations=str(path))
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_folder_is_no_file(subject: probekit.Subject, tmp_path: Path) -> None:
    with pytest.raises(probekit.UsageError, match="cannot be read as safetensors"):
        drawn(subject, activations=str(tmp_path))


def test_distances_are_finite(recovered: Recovered, one: torch.Tensor) -> None:
    values = one.clone()
    values[3] = 0
    for row in recovered({"a": values}).tables["positions"]:
        assert all(value is None or math.isfinite(float(value)) for value in (row["distance"], row["bound"]))
