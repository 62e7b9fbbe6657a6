"""What is trained: each variant at each of its sizes, with each seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probekit import UsageError
from probekit_plugins.autoencoder import SPARSE
from probekit_plugins.autoencoder.modules import Contrastive, Plain, Variational

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from probekit_plugins.autoencoder import AutoencoderOptions, Variant


@dataclass(frozen=True)
class Setting:
    """A variant and its size: the width q of a code, the k of a TopK, or the penalty λ."""

    variant: Variant
    size: float

    @property
    def name(self) -> str:
        """Such as `plain-8`, `topk-k4`, `l1-0.3`."""
        letter = "k" if self.variant in ("topk", "batchtopk") else ""
        return f"{self.variant}-{letter}{self.size:g}"

    @property
    def sparse(self) -> bool:
        """Whether its codes are."""
        return self.variant in SPARSE


def settings(variants: Sequence[Variant], width: int, options: AutoencoderOptions) -> Iterator[Setting]:
    """Each of these variants at each of its sizes, for activations of this width."""
    widths = options.widths or sorted({max(1, width // 16), max(1, width // 8), max(1, width // 4)})
    for variant in variants:
        if variant in ("topk", "batchtopk"):
            sizes: list[float] = [*options.active]
        elif variant in SPARSE:
            sizes = options.penalties
        else:
            sizes = [*widths]
        for size in sizes:
            yield Setting(variant, size)


def check(setting: Setting, width: int, options: AutoencoderOptions) -> None:
    """Raise UsageError for a TopK or a BatchTopK with more features active than there are."""
    features = options.features or 4 * width
    if setting.variant in ("topk", "batchtopk") and setting.size > features:
        raise UsageError(
            f"The variant '{setting.variant}' has {setting.size:g} of {features} features active; expected a whole "
            f"number from 1 to {features}. Give fewer (-o active=4), or more features (-o features=…)."
        )


def made(
    setting: Setting, width: int, views: int, options: AutoencoderOptions, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """A fresh module with the weights of this seed, and what it was made with. torch's own generator stays as it is.

    Raises UsageError for a sparse one where SAELens is not installed.
    """
    if setting.sparse:
        from probekit_plugins.autoencoder.sparse import Sparse

        features = options.features or 4 * width
        return Sparse(setting.variant, width, features, setting.size, options, seed), {}
    arguments: dict[str, Any] = {
        "width": width,
        "code": int(setting.size),
        "depth": options.layers,
        "hidden": max(2 * width, int(setting.size)),
    }
    kinds: dict[str, type[nn.Module]] = {"plain": Plain, "variational": Variational, "contrastive": Contrastive}
    if setting.variant == "variational":
        arguments |= {"variance": options.noise_variance, "beta": options.beta}
    elif setting.variant == "contrastive":
        arguments |= {"views": views, "temperature": options.temperature, "dropout": options.dropout}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kinds[setting.variant](**arguments), arguments
