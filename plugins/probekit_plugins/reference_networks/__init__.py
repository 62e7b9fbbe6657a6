"""Reference networks: fully connected networks behind a token embedding, to compare transformers with.

`fc-invertible`, `fc-narrow` and `fc-token` are names of models, as in `--model fc-invertible,tokens=6,embedding=gpt2`.
Source: Sentence Representation with Language Models, its `FCNet` and the variants beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import probekit

if TYPE_CHECKING:
    from torch import nn


@probekit.hookimpl
def probekit_load_model(spec: probekit.ModelSpec) -> tuple[nn.Module, Any] | None:
    from probekit_plugins.reference_networks.names import is_ours, parse_name

    if not is_ours(spec.name):
        return None
    wanted = parse_name(spec)

    from probekit_plugins.reference_networks.build import build

    return build(wanted, spec)


@probekit.hookimpl
def probekit_anatomy(model: Any) -> Mapping[str, str | int | None] | None:
    # One of ours has its module imported already; to ask about any other, torch need not be.
    network = sys.modules.get(f"{__name__}.network")
    return network.anatomy(model) if network and isinstance(model, network.ReferenceNetwork) else None
