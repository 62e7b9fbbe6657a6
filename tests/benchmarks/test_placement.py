"""Weights that are not held: every way of loading is measured, and does the same work."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config

from benchmarks import placement
from benchmarks.models import MODELS, saved
from benchmarks.outcome import Settings
from benchmarks.process import TELLS

CONFIG = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0}


def test_a_model_is_made_for_the_occasion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODELS, raising=False)
    with saved("tiny", GPT2Config(**CONFIG)) as folder:
        assert (Path(folder) / "model.safetensors").is_file()
    assert not Path(folder).exists()


def test_a_model_in_the_named_folder_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODELS, str(tmp_path))
    with saved("tiny", GPT2Config(**CONFIG)) as folder:
        written = (Path(folder) / "model.safetensors").stat()
    with saved("tiny", GPT2Config(**CONFIG)) as again:
        assert again == folder == str(tmp_path / "tiny")
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns


@pytest.mark.slow
@pytest.mark.skipif(not TELLS, reason="only Linux tells")
def test_every_way_of_loading_is_measured_and_does_the_same_work() -> None:
    outcome = placement.run(Settings(quick=True))
    values = {figure.what: figure.value for figure in outcome.figures}
    assert {str(side["side"]) for side in outcome.sides} >= {"resident", "mapped", "on disk", "int8"}
    assert values["embeddings after all steps: mapped, on disk − resident, at most"] < 1e-3
    assert values["probekit run, int8, --device-map auto: exit status"] == 0
    for start in ("a step,", "mapped:", "on disk:", "int8:", "loading as bfloat16", "loading as int8", "on disk, 2"):
        assert any(what.startswith(start) for what in values), start
