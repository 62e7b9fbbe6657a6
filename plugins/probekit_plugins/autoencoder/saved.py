"""Autoencoders on disk: a folder with `cfg.json` and weights in safetensors; SAELens' own for those that are sparse.

plain-8-seed0/cfg.json              what it is, of which model and site, and its figures
plain-8-seed0/weights.safetensors   parameters and buffers by their names in `modules`
topk-k4-seed0/cfg.json              as SAELens writes it, with what is above under "metadata"
topk-k4-seed0/sae_weights.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probekit import UsageError
from probekit_plugins.autoencoder.modules import Autoencoder, Contrastive, Plain, Variational

CONFIG = "cfg.json"
WEIGHTS = "weights.safetensors"
FORMAT = "probekit-autoencoder"
SCHEMA = 1
# Where autoencoders may be below a folder that somebody took for one: as a run keeps them. A folder of anything else is
# not searched through.
BELOW = (f"*/{CONFIG}", f"*/*/{CONFIG}", f"analyses/*/files/*/*/{CONFIG}", f"files/*/*/{CONFIG}")
NAMED = 8
# A figure of a file that is negative, greater than this or no number is taken as not given.
GREATEST = 2**31
# What the modules of each variant are made with.
MADE_OF: dict[str, type[nn.Module]] = {"plain": Plain, "variational": Variational, "contrastive": Contrastive}


@dataclass(frozen=True)
class Saved:
    """A saved autoencoder, and what is known of it; what a file of others does not say is empty or None.

    `error` is the root mean square of `x − x̂` in an entry, on the documents that were held out. `weights` is the hash
    of the model's weights.
    """

    autoencoder: Autoencoder
    name: str
    site: str
    width: int
    error: float | None
    skip_first: int
    weights: str | None


def described(
    site: str,
    facts: Mapping[str, Any],
    skip_first: int,
    figures: Mapping[str, float | None],
    data: Mapping[str, str | int] | None = None,
) -> dict[str, Any]:
    """What is kept with the weights: the same for every run of the same training. `data` is what it was trained on."""
    return {
        "site": site,
        "model": facts.get("name"),
        "model_weights": facts.get("weights_sha256") or facts.get("revision"),
        "skip_first": skip_first,
        "data": dict(data or {}),
        "figures": dict(figures),
    }


def files(variant: str, made_of: Mapping[str, Any], module: nn.Module, about: Mapping[str, Any]) -> dict[str, bytes]:
    """The two files of an autoencoder that is not sparse."""
    from safetensors.torch import save

    config = {"format": FORMAT, "schema": SCHEMA, "architecture": variant, "arguments": dict(made_of), **about}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return {CONFIG: (json.dumps(config, indent=1, allow_nan=False) + "\n").encode(), WEIGHTS: save(tensors)}


def read(path: str | Path) -> Saved:
    """The autoencoder in a folder. Raises UsageError if there is none, if it is damaged, or if it has no decoder."""
    folder = Path(path)
    config = _config(folder)
    if config.get("format") == FORMAT:
        autoencoder, about = _own(folder, config), config
    else:
        from probekit_plugins.autoencoder.sparse import read_sparse

        autoencoder, about = read_sparse(folder), _mapping(config.get("metadata"))
    figures = _mapping(about.get("figures"))
    error, weights, skip = figures.get("error"), about.get("model_weights"), about.get("skip_first")
    return Saved(
        autoencoder,
        folder.name if folder.name not in ("", "..") else folder.resolve().name,
        str(about.get("site") or ""),
        autoencoder.width,
        float(error) if isinstance(error, int | float) and 0 <= error < GREATEST else None,
        skip if isinstance(skip, int) and 0 <= skip < GREATEST else 0,
        weights if isinstance(weights, str) else None,
    )


def _own(folder: Path, config: Mapping[str, Any]) -> Autoencoder:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    variant = config.get("architecture")
    if config.get("schema") != SCHEMA or not isinstance(variant, str) or variant not in MADE_OF:
        raise UsageError(
            f"The autoencoder '{folder}' is of a kind that this version does not know ({variant!r}); expected one of "
            f"{', '.join(MADE_OF)}, of schema {SCHEMA}."
        )
    if variant == "contrastive":
        raise UsageError(
            f"The autoencoder '{folder}' is contrastive: it has no decoder, so it gives no reconstruction; choose "
            "another."
        )
    try:
        tensors = load_file(folder / WEIGHTS)
        with torch.device("meta"):  # so that a file that names other sizes takes no memory
            module = MADE_OF[variant](**_mapping(config.get("arguments")))
        module.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"The autoencoder '{folder}' is damaged or incomplete: {reason[:300]}.") from None
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UsageError(f"The autoencoder '{folder}' holds NaN or infinity; train it again.")
    assert isinstance(module, Autoencoder)
    return module.eval().requires_grad_(False)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        inside = sorted(path.parent.relative_to(folder).as_posix() for place in BELOW for path in folder.glob(place))
        hint = f"; below it are: {', '.join(inside[:NAMED])}" if inside else ""
        raise UsageError(
            f"There is no autoencoder in '{folder}': expected a folder with a {CONFIG} and weights{hint}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The file '{folder / CONFIG}' is damaged: {error}.") from None
    if not isinstance(config, dict):
        raise UsageError(f"The file '{folder / CONFIG}' is damaged: expected a table.")
    return config


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
