"""Layer maps of several sites in one pass: rows of every site go through the blocks together, each as far as its site.

Rows share nothing, so those of `block.0` and those of `block.5` can be one batch in block 0; then the first leave, and
the others go on. No row is computed further than its site, and each weight is read once, not once for each site: for a
few rows, for which reading the weights takes longer than computing with them, a step at all 12 blocks of GPT-2 takes a
third of the time. The batch is another than a site's own, so that values differ by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from probekit.forward.layer_map import LayerMap
from probekit.forward.replay import Route
from probekit.forward.rest import resting


class LayerMaps:
    """`{site: e}` → `{site: O_l(e)}`, with embeddings `[batch, sequence, d]` of one shape for all sites.

    Blocks are called as `LayerMap` replays them, with the arguments that the model itself gives a batch of each size
    that occurs. Where it does not replay them, as within a block, one map is called after another, with the same
    results.
    """

    def __init__(
        self, model: nn.Module, alone: Mapping[str, LayerMap], together: Sequence[tuple[str, LayerMap]], settled: bool
    ) -> None:
        """`alone` are the maps of the sites; `together` those that may share a pass, the shallowest first, each made
        for the rows of its own site and of all that come after it.
        """
        self._model, self._settled = model, settled
        self._alone, self._together = dict(alone), list(together)

    def __call__(self, embeddings: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The activation at each site. Raises what the sites' own maps raise."""
        asked = [(site, layer_map) for site, layer_map in self._together if site in embeddings]
        found: dict[str, torch.Tensor] = {}
        if len(asked) == len(self._together) > 1 and len({embeddings[site].shape for site, _ in asked}) == 1:
            # The deepest first, so that those that leave are at the end.
            rows = torch.cat([embeddings[site] for site, _ in reversed(asked)])
            with resting(self._model, self._settled):
                if routes := self._routes(rows):
                    found = self._through(rows, routes)
        return {site: found[site] if site in found else self._alone[site](each) for site, each in embeddings.items()}

    def _routes(self, rows: torch.Tensor) -> list[Route] | None:
        """How each site is reached by the rows that go so far; None unless all are, each on the way of the next."""
        size = len(rows) // len(self._together)
        routes: list[Route] = []
        for number, (_, layer_map) in enumerate(self._together):
            route = layer_map.route(rows[: len(rows) - number * size])
            if route is None or (routes and not route.goes_on_from(routes[-1])):
                return None
            routes.append(route)
        return routes

    def _through(self, rows: torch.Tensor, routes: Sequence[Route]) -> dict[str, torch.Tensor]:
        size = len(rows) // len(routes)
        hidden = routes[0].onwards(routes[0].entered(rows))
        found = {}
        for number, (site, _) in enumerate(self._together):
            if number:
                hidden = routes[number].onwards(hidden, routes[number - 1])
            if number == len(routes) - 1:
                found[site] = hidden
                break
            hidden, found[site] = hidden.split([len(hidden) - size, size])
            hidden = hidden.clone()  # a block may write into what it is given, which a part of a tensor does not take
        return found
