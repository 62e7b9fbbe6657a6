"""Depth: a model cut to its first blocks computes there what the whole model computes, bit for bit, or is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import probekit
from probekit.errors import ModelError, UsageError
from probekit.models import depth as depth_module
from tests.forward.tiny import named

IDS = torch.tensor([[25, 37, 23, 64, 29, 41], [70, 28, 28, 41, 22, 33]])

# Blocks of one kind; of several; an encoder's config with the decoder's count; dense blocks first; parallel lists;
# overrides per block; a count of its own name.
CUT = ["gpt2", "jamba", "bart", "whisper", "deepseek_v3", "xlm", "dots3_note", "prophetnet"]
# What is refused, at some depth, with the reason. Each would be another model, except those marked.
REFUSED = {
    "blt": "its config does not say how many there are",
    "gemma3n_text": "so few do not make a model|alone they are not those of the whole model",
    "gemma4": r"embed_tokens_per_layer\.weight differs",
    "gemma4_text": r"embed_tokens_per_layer\.weight differs",
    "gpt_neox_japanese": "alone they are not those of the whole model",  # the last block has a bias
    "hrm_text": "num_hidden_layers alone does not set their number",  # two stacks that run in turns
    "longcat_flash": "num_hidden_layers alone does not set their number",  # the same blocks: two count as one
    "minicpm3": r"layers\.0\.residual_scale differs",
    "rwkv": "division by zero",  # transformers makes none of one block
    "xlstm": "num_hidden_layers alone does not set their number",  # the same blocks: another field does
    "zamba": "so few do not make a model",  # blocks that share their weights
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`saved("gpt2")`: the folder of a tiny model of that architecture, of three blocks, made once."""
    made: dict[str, str] = {}

    def save(name: str) -> str:
        if name not in made:
            model: Any = named(name)
            made[name] = str(tmp_path_factory.mktemp(name))
            model.save_pretrained(made[name])
        return made[name]

    return save


def assert_the_first_blocks_are_those_of(whole: probekit.Subject, cut: probekit.Subject, depth: int) -> None:
    assert len(cut.anatomy.blocks) == depth
    sites = ["embedding", *(f"block.{index}" for index in range(depth))]
    expected = whole.capture(IDS, sites)
    for site, activation in cut.capture(IDS, sites).items():
        assert torch.equal(activation, expected[site]), site
    embeddings = whole.embed(IDS)
    for site in sites[1:]:
        mapped = [
            subject.layer_map(site, input_ids=IDS if subject.conditioned_on_ids else None)(embeddings)
            for subject in (whole, cut)
        ]
        assert torch.equal(mapped[0], mapped[1]), site


@pytest.mark.parametrize("name", CUT)
def test_the_first_blocks_alone_are_those_of_the_whole(saved: Callable[[str], str], name: str) -> None:
    whole = probekit.load(saved(name))
    for depth in (1, 2):
        assert_the_first_blocks_are_those_of(whole, probekit.load(saved(name), depth=depth), depth)


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text", "hrm_text", "minicpm3", "blt"])
def test_what_cannot_be_cut_is_refused_with_a_sentence(saved: Callable[[str], str], name: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]) as refusal:
        probekit.load(saved(name), depth=2)
    assert "cannot be cut to its first 2 blocks" in str(refusal.value)
    assert str(refusal.value).endswith("Leave --depth out; what is past the site is not computed anyway.")
    assert "\n" not in str(refusal.value)


def test_without_the_refusal_values_would_be_others(
    saved: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probekit.load(saved("minicpm3")).capture(IDS, ["block.0"])["block.0"]
    monkeypatch.setattr(depth_module, "_difference", lambda model, shorter: "")
    cut = probekit.load(saved("minicpm3"), depth=2).capture(IDS, ["block.0"])["block.0"]
    assert not torch.allclose(cut, whole, rtol=1e-2)


def test_random_weights_are_of_no_whole_but_have_the_depth(saved: Callable[[str], str]) -> None:
    assert len(probekit.load(saved("minicpm3"), weights="random", depth=2).anatomy.blocks) == 2
    with pytest.raises(ModelError, match=REFUSED["hrm_text"]):
        probekit.load(saved("hrm_text"), weights="random", depth=2)


def test_an_encoder_decoder_is_cut_in_its_decoder(saved: Callable[[str], str], tmp_path: Path) -> None:
    """A checkpoint of the whole bart says so in its config, of which transformers then gives a copy as the text's."""
    shutil.copytree(saved("bart"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}), encoding="utf-8")
    cut = probekit.load(str(tmp_path), depth=1)
    model: Any = cut.model
    assert model.config.encoder_layers == config["encoder_layers"]
    assert_the_first_blocks_are_those_of(probekit.load(str(tmp_path)), cut, 1)


@pytest.mark.parametrize("precision", [{"quantization": "int8"}, {"dtype": "bfloat16"}, {"dtype": "float64"}], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_precision_does_not_depend_on_the_depth(
    saved: Callable[[str], str], name: str, precision: dict[str, str]
) -> None:
    options = {"name": saved(name), **precision}
    whole, cut = (
        probekit.load(**options),  # type: ignore[arg-type]
        probekit.load(**options, depth=2),  # type: ignore[arg-type]
    )
    assert cut.facts["dtype"] == whole.facts["dtype"]
    assert_the_first_blocks_are_those_of(whole, cut, 2)


@pytest.mark.parametrize("name", ["gpt2", "gemma3n_text", "zamba"])
def test_the_full_depth_is_the_whole_model(saved: Callable[[str], str], name: str) -> None:
    whole = probekit.load(saved(name))
    depth = len(whole.anatomy.blocks)
    assert_the_first_blocks_are_those_of(whole, probekit.load(saved(name), depth=depth), depth)
    with pytest.raises(UsageError, match=f"depth of {depth + 1} blocks was asked for, but the model has {depth}"):
        probekit.load(saved(name), depth=depth + 1)


def test_what_the_config_says_of_precision_is_left_alone(saved: Callable[[str], str]) -> None:
    """Building without weights makes transformers write into a config."""
    spec = probekit.ModelSpec(name=saved("gemma3"), depth=2)
    config = transformers.AutoConfig.from_pretrained(spec.name)
    config.dtype = None
    config.text_config.dtype = torch.bfloat16
    found = depth_module.cut(config, spec)
    assert (found.dtype, found.text_config.dtype) == (None, torch.bfloat16)
    assert found.text_config.num_hidden_layers == len(found.text_config.layer_types) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_architecture_is_cut_to_its_own_first_blocks_or_refused(saved: Callable[[str], str], name: str) -> None:
    try:
        whole = probekit.load(saved(name))
    except (ModelError, ValueError) as error:
        pytest.skip(f"it cannot be loaded whole: {error}")
    refusals = []
    for depth in (1, 2):
        try:
            cut = probekit.load(saved(name), depth=depth)
        except ModelError as refusal:
            refusals.append(str(refusal))
        else:
            assert_the_first_blocks_are_those_of(whole, cut, depth)
    assert bool(refusals) == (name in REFUSED), refusals
    for sentence in refusals:
        assert re.search(REFUSED[name], sentence), sentence
