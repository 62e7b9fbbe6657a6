"""Capture: read activations in one forward pass that stops as soon as every site has been read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from probekit.errors import ModelError
from probekit.forward.rest import forward
from probekit.forward.sites import Site
from probekit.models.offload import Offloaded
from probekit.models.passes import Reached


def capture(
    model: nn.Module,
    sites: Mapping[str, Site],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    positions: bool = False,
    **inputs: Any,
) -> dict[str, torch.Tensor]:
    """The activation of each site, detached, under the name it was asked by; one forward, stopped at the deepest.

    Which site is deepest is not assumed: the pass ends when the last one has been read, in whatever order they run.
    `positions` and `inputs` as in `forward`. Raises ModelError if a site never ran.
    """
    found: dict[str, torch.Tensor] = {}

    def reader(name: str, site: Site) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if name not in found:
                # A copy: the model may go on to write into this very tensor.
                found[name] = site.read(output, input_ids.shape[1]).detach().clone()
            if len(found) == len(sites):
                raise Reached

        return hook

    handles = []
    try:
        for name, site in sites.items():
            handles.append(site.module.register_forward_hook(reader(name, site)))
        with torch.no_grad(), Offloaded(model).passing(gradients=False):
            forward(model, input_ids, attention_mask, positions, **inputs)
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for name in sites:
        if name not in found:
            raise ModelError(f"The site '{name}' never ran in a forward pass of this model; choose another site.")
    return {name: found[name] for name in sites}
