"""Autoencoders on disk: what is read back is what was trained, and what cannot be read is a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import probekit
from probekit_plugins.autoencoder import saved
from probekit_plugins.autoencoder.modules import Contrastive, Plain, Variational

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {"width": 6, "code": 2, "depth": 2, "hidden": 8},
    "variational": {"width": 6, "code": 2, "depth": 1, "hidden": 8, "variance": 0.1, "beta": 1.0},
    "contrastive": {
        "width": 6,
        "code": 2,
        "depth": 1,
        "hidden": 8,
        "views": 1,
        "temperature": 0.1,
        "dropout": 0.2,
    },
}
KINDS = {"plain": Plain, "variational": Variational, "contrastive": Contrastive}


def written(folder: Path, variant: str = "plain", **about: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    module: Any = KINDS[variant](**ARGUMENTS[variant])
    module.prepare(X[:, None])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    facts = {"name": "demo", "weights_sha256": "abc"}
    known = saved.described("block.1", facts, 1, {"error": 0.25, "fve": 0.9}) | about
    folder.mkdir(parents=True)
    for name, content in saved.files(variant, ARGUMENTS[variant], module, known).items():
        (folder / name).write_bytes(content)
    return module


@pytest.mark.parametrize("variant", ["plain", "variational"])
def test_what_is_read_back_is_what_was_written(tmp_path: Path, variant: str) -> None:
    module: Any = written(tmp_path / "mine", variant)
    found = saved.read(tmp_path / "mine")
    assert torch.equal(found.autoencoder.reconstruct(X), module.reconstruct(X))
    assert not any(parameter.requires_grad for parameter in found.autoencoder.parameters())
    assert (found.name, found.site, found.width, found.error) == ("mine", "block.1", 6, 0.25)
    assert (found.skip_first, found.weights) == (1, "abc")


def test_the_weights_are_plain_safetensors_and_the_bytes_always_the_same(tmp_path: Path) -> None:
    module = written(tmp_path / "one")
    written(tmp_path / "two")
    assert {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "one" / saved.WEIGHTS).items()} == {
        name: tuple(tensor.shape) for name, tensor in module.state_dict().items()
    }
    for name in (saved.CONFIG, saved.WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_contrastive_one_has_no_decoder(tmp_path: Path) -> None:
    written(tmp_path / "mine", "contrastive")
    with pytest.raises(probekit.UsageError, match="is contrastive: it has no decoder"):
        saved.read(tmp_path / "mine")


def test_a_folder_of_several_names_them(tmp_path: Path) -> None:
    written(tmp_path / "files" / "plain-8-seed0")
    with pytest.raises(probekit.UsageError, match=r"There is no autoencoder in .*below it are: files/plain-8-seed0"):
        saved.read(tmp_path)


def damage_weights(folder: Path) -> None:
    content = (folder / saved.WEIGHTS).read_bytes()
    (folder / saved.WEIGHTS).write_bytes(content[:-9])


def change(**values: Any) -> Any:
    def changed(folder: Path) -> None:
        config = json.loads((folder / saved.CONFIG).read_text())
        (folder / saved.CONFIG).write_text(json.dumps(config | values))

    return changed


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / saved.CONFIG).unlink(), "There is no autoencoder in"),
        (lambda folder: (folder / saved.CONFIG).write_text("{"), "is damaged"),
        (lambda folder: (folder / saved.CONFIG).write_text("[1]"), "expected a table"),
        (lambda folder: (folder / saved.WEIGHTS).unlink(), "is damaged or incomplete"),
        (damage_weights, "is damaged or incomplete"),
        (change(architecture="other"), "of a kind that this version does not know"),
        (change(schema=7), "of a kind that this version does not know"),
        (change(arguments={"width": 7, "code": 2, "depth": 2, "hidden": 8}), "is damaged or incomplete"),
        (change(arguments=["a"]), "is damaged or incomplete"),
        (change(arguments={"width": 10**12, "code": 2, "depth": 2, "hidden": 8}), "is damaged or incomplete"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, spoil: Any, sentence: str) -> None:
    written(tmp_path / "mine")
    spoil(tmp_path / "mine")
    with pytest.raises(probekit.UsageError, match=sentence) as raised:
        saved.read(tmp_path / "mine")
    assert "\n" not in str(raised.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module: Any = Plain(**ARGUMENTS["plain"])
    with torch.no_grad():
        module.decoder.linear.weight[0, 0] = float("nan")
    (tmp_path / "mine").mkdir()
    known = saved.described("block.1", {}, 1, {})
    for name, content in saved.files("plain", ARGUMENTS["plain"], module, known).items():
        (tmp_path / "mine" / name).write_bytes(content)
    with pytest.raises(probekit.UsageError, match="holds NaN or infinity"):
        saved.read(tmp_path / "mine")


@pytest.mark.parametrize("error", [float("inf"), float("nan"), -1.0, 10**400, "0.1", None])
def test_a_figure_that_is_none_is_taken_as_not_given(tmp_path: Path, error: object) -> None:
    written(tmp_path / "mine")
    path = tmp_path / "mine" / saved.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"figures": {"error": error}, "skip_first": 10**30}), encoding="utf-8")
    found = saved.read(tmp_path / "mine")
    assert (found.error, found.skip_first) == (None, 0)


def test_an_architecture_that_is_no_name_is_a_sentence(tmp_path: Path) -> None:
    written(tmp_path / "mine")
    path = tmp_path / "mine" / saved.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"architecture": ["plain"]}), encoding="utf-8")
    with pytest.raises(probekit.UsageError, match="of a kind that this version does not know"):
        saved.read(tmp_path / "mine")
