"""The figures of repetition follow from its sequences, its sources, and what the model was seen to predict."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs.recompute import recompute
from probekit_plugins.repetition import Repetition, RepetitionOptions
from probekit_plugins.repetition.outcome import SOURCES
from tests.analyses.recomputing import assert_figures_follow

PROMPTS = ["The sky is blue.", "Once"]
QUICK: dict[str, Any] = {"new_tokens": 6, "random_draws": 2, "samples": 2, "windows": [4, 4, 2]}
TUNED: dict[str, Any] = {"unlikelihood_steps": 1, "unlikelihood_batch": 2, "unlikelihood_pieces": 5}
WALK = {"steps": 2, "walkers": 2, "noise_draws": 1, "top_k": 2, "sites": "norm"}
NAME = "repetition"


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("The sky is blue and the sea is green. " * 12, encoding="utf-8")
    return str(file)


def test_figures_follow_of_all_sources_and_of_copies(tiny_gpt2: Callable[..., Path], tmp_path: Path, text: str) -> None:
    """Given, generated and decoded sequences, a saved run that is gone by then, and fine-tuning; a seed of its own."""
    names = [NAME, "orthogonal-walk"]
    settings = {**QUICK, **TUNED, "text_length": 8}
    options: dict[str, Any] = {NAME: {**settings, "strategies": ["temperature", "greedy"]}, "orthogonal-walk": WALK}
    source = probekit.run(tiny_gpt2(), names, PROMPTS, options, tmp_path / "source").path
    options[NAME] = {**settings, "strategies": ["greedy", "contrastive"], "text": text, "source": str(source)}
    run = probekit.run(tiny_gpt2(), names, PROMPTS, options, tmp_path / "run", seed=2**63 - 1)
    assert {row["run"] for table in ("generated", "decoded") for row in run.results[NAME].tables[table]} == {
        "this run",
        "source",
    }
    assert {"quality", "decoded_steps", "fine_tuning", "texts", "given"} <= run.results[NAME].tables.keys()
    shutil.rmtree(source)
    assert_figures_follow(run.path, NAME)


def test_figures_follow_without_generated_text_and_windows(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    options = {**QUICK, "strategies": [], "windows": [], "text": text, "text_length": 8, "drop_last": True}
    run = probekit.run(tiny_gpt2(), NAME, PROMPTS, {**options, "distinct_over": "ngrams"}, tmp_path / "run")
    assert_figures_follow(run.path, NAME)
    options = {**QUICK, **TUNED, "strategies": [], "text_length": 8}
    assert_figures_follow(probekit.run(tiny_gpt2(), NAME, "Once", options, tmp_path / "tuned").path, NAME)


def test_figures_follow_of_one_token_of_which_nothing_is_predicted(
    tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    options = {**QUICK, "strategies": []}
    run = probekit.run(tiny_gpt2(), NAME, (), options, tmp_path / "run", input_ids=[[5]])
    assert run.result.tables["given"][0]["nll"] is None
    assert_figures_follow(run.path, NAME)


def test_a_file_or_a_tensor_that_says_something_else_is_told(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "strategies": ["greedy"]}
    run = probekit.run(
        tiny_gpt2(), [NAME, "orthogonal-walk"], PROMPTS, {NAME: options, "orthogonal-walk": WALK}, tmp_path / "run"
    )
    analysis, saved = Repetition(RepetitionOptions(**options)), run.results[NAME]
    assert recompute(analysis, saved).different == []
    for key in ("predicted/before/greedy", "predicted/prompts/random", "seed", "vocabulary", "blocks"):
        was = saved.tensors[key]
        saved.tensors[key] = 3 * was + 1
        assert recompute(analysis, saved).different, key
        saved.tensors[key] = was
    file = saved.files[SOURCES]
    assert isinstance(file, Path)
    content = file.read_text(encoding="utf-8")
    file.write_text(content.replace('"rank": 0', '"rank": 1'), encoding="utf-8")
    assert recompute(analysis, saved).different
    file.write_text(content, encoding="utf-8")
    saved.sequences["generated"][0].ids[:] = [1, 2, 3, 4, 5, 6]
    assert recompute(analysis, saved).different
