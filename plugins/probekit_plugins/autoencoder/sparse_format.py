"""Sparse autoencoders as SAELens saves them, read without it: `cfg.json` and `sae_weights.safetensors`.

SAELens itself is asked only for what is not read here: other architectures, and activations that are normalised. It is
imported by `sae_lens`, and nowhere else.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probekit import AnalysisError, UsageError
from probekit_plugins.autoencoder.modules import Autoencoder

if TYPE_CHECKING:
    from probekit_plugins.trainer import Step

CONFIG_FILE = "cfg.json"
WEIGHT_FILE = "sae_weights.safetensors"
# What is read here, with the tensors that each has.
TENSORS = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "batchtopk": ("W_enc", "b_enc", "W_dec", "b_dec", "topk_threshold"),  # only while it is trained; then a jumprelu
}


def sae_lens(wanted_for: str, otherwise: str = "") -> Any:
    """The package SAELens. Importing it prints nothing, fetches nothing and leaves torch's random numbers as they are.

    `wanted_for` begins the sentence of the UsageError that is raised where it is not installed, `otherwise` ends it.
    """
    try:
        with _quietly():
            return importlib.import_module("sae_lens")
    except ImportError as error:
        reason = "" if error.name == "sae_lens" else f" ({type(error).__name__}: {error})"
        raise UsageError(
            f"{wanted_for} needs SAELens, which is not installed{reason}; install probekit[sae]{otherwise}."
        ) from None


@contextmanager
def _quietly() -> Iterator[None]:
    if "sae_lens" in sys.modules:
        yield
        return
    disabled = logging.root.manager.disable
    # bitsandbytes, which comes with it, asks the hub for a faster kernel when it is imported, if it finds this package.
    without_kernels = not {"bitsandbytes", "kernels"} & set(sys.modules)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        if without_kernels:
            sys.modules["kernels"] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            logging.disable(disabled)
            if without_kernels:
                del sys.modules["kernels"]


class Codec(nn.Module):
    """`f = σ((x − b_dec) W_enc + b_enc)`, `x̂ = f W_dec + b_dec`, with σ the ReLU (standard), the ReLU of the k greatest
    (topk), or of what is above the threshold θ (jumprelu, batchtopk).

    Where activations are rescaled, σ sees its argument times `‖W_dec,i‖`, and `W_dec` is taken with rows of norm 1.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    threshold: torch.Tensor

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.architecture: str = config["architecture"]
        self.k: int = config.get("k", 0) if self.architecture == "topk" else 0
        self.shifted: bool = config.get("apply_b_dec_to_input", True)
        rescales = self.architecture in ("topk", "batchtopk")
        self.rescaled: bool = rescales and config.get("rescale_acts_by_decoder_norm", False)
        for name in TENSORS[self.architecture]:
            self.register_buffer(name.removeprefix("topk_"), tensors[name])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """`[…, d] → […, q]`."""
        before = (x - self.b_dec if self.shifted else x) @ self.W_enc + self.b_enc
        if self.rescaled:
            before = before * self.W_dec.norm(dim=-1)
        if self.architecture == "topk":
            greatest, places = before.topk(self.k, dim=-1)
            return torch.zeros_like(before).scatter(-1, places, greatest.relu())
        active = before.relu()
        return active if self.architecture == "standard" else active * (before > self.threshold)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """`[…, q] → […, d]`."""
        codes = codes / self.W_dec.norm(dim=-1) if self.rescaled else codes
        return codes @ self.W_dec + self.b_dec


class SavedSparse(Autoencoder):
    """A sparse autoencoder that was trained before: it encodes and decodes, and is not trained again.

    `width` is d, `features` the number of features, `config` what its `cfg.json` says.
    """

    def __init__(self, codec: nn.Module, width: int, features: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.codec = codec
        self.width, self.features, self.config = width, features, dict(config)

    def prepare(self, examples: torch.Tensor) -> None:
        """Nothing: it takes activations as they are."""

    def loss(self, examples: torch.Tensor, step: Step) -> torch.Tensor:
        """Raises AnalysisError."""
        raise AnalysisError("A sparse autoencoder that was read from a file is not trained again; train a new one.")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self.codec.encode(x)  # type: ignore[operator]
        return codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.codec.decode(codes)  # type: ignore[operator]
        return decoded


def read_sparse(folder: Path) -> SavedSparse:
    """The sparse autoencoder in a folder that SAELens or probekit wrote.

    Raises UsageError if a file is missing or damaged, if a tensor is missing, of a wrong shape or not finite, and if it
    takes SAELens to read and that is not installed.
    """
    config = _config(folder)
    architecture = config.get("architecture", "standard")  # as old versions of SAELens leave it out
    if not isinstance(architecture, str):
        raise UsageError(
            f"The file '{folder / CONFIG_FILE}' is damaged: its architecture is {architecture!r}, no name."
        )
    width, features = (_size(folder, config, name) for name in ("d_in", "d_sae"))
    tensors = _tensors(folder)
    if architecture not in TENSORS or not _plain(config) or "scaling_factor" in tensors:
        return SavedSparse(_of_sae_lens(folder, architecture, width), width, features, config)
    shapes = {"W_enc": (width, features), "W_dec": (features, width), "b_dec": (width,), "topk_threshold": ()}
    for name in TENSORS[architecture]:
        shape = shapes.get(name, (features,))
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            raise UsageError(
                f"The file '{folder / WEIGHT_FILE}' has {'no tensor' if found is None else f'a {list(found)} tensor'} "
                f"{name}; expected {list(shape)} for an architecture '{architecture}' with d_in {width} and d_sae "
                f"{features}."
            )
        if not bool(tensors[name].isfinite().all()):
            raise UsageError(f"The tensor {name} of '{folder / WEIGHT_FILE}' holds NaN or infinity; train it again.")
    if architecture == "topk" and not 0 < _size(folder, config, "k") <= features:
        raise UsageError(
            f"The file '{folder / CONFIG_FILE}' says k = {config['k']}; expected 1 to {features}, its d_sae."
        )
    codec = Codec(
        {**config, "architecture": architecture}, {name: tensors[name].float() for name in TENSORS[architecture]}
    )
    return SavedSparse(codec, width, features, config).eval()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            f"There is no sparse autoencoder in '{folder}': expected a folder with {CONFIG_FILE} and {WEIGHT_FILE}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The file '{path}' is damaged: {error}.") from None
    if not isinstance(config, dict):
        raise UsageError(f"The file '{path}' is damaged: expected a table.")
    return config


def _plain(config: Mapping[str, Any]) -> bool:
    """Whether activations are taken as they are, and nothing but the architecture says what becomes of them."""
    kept = all(config.get(name) in (None, False, "none") for name in ("normalize_activations", "reshape_activations"))
    return kept and config.get("activation_fn", config.get("activation_fn_str", "relu")) == "relu"


def _size(folder: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"The file '{folder / CONFIG_FILE}' says {name} = {value!r}; expected a number of at least 1.")
    return value


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHT_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UsageError(
            f"The weights '{path}' are missing or damaged: {' '.join(str(error).split())[:200]}."
        ) from None


def _of_sae_lens(folder: Path, architecture: str, width: int) -> nn.Module:
    """What SAELens itself makes of the folder."""
    package = sae_lens(f"The autoencoder '{folder}' of the architecture '{architecture}'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: nn.Module = package.SAE.load_from_disk(str(folder)).float().eval()
            loaded.turn_off_forward_pass_hook_z_reshaping()  # type: ignore[operator]  # activations come flat
            with torch.no_grad():
                shape = loaded(torch.zeros(2, width)).shape
    except Exception as error:  # whatever a file of anyone's makes of it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"SAELens does not read the autoencoder '{folder}' of the architecture '{architecture}': {reason[:300]}."
        ) from None
    if "transcoder" in architecture or shape[-1] != width:
        raise UsageError(f"'{folder}' is a transcoder: it does not reconstruct what it encodes; give an autoencoder.")
    return loaded.requires_grad_(False)
