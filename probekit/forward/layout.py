"""Layout: what the axes of a model's embeddings and activations are, and where a prompt stands among its positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from probekit.errors import ModelError, UsageError, out_of_memory
from probekit.forward.axes import AS_RETURNED, Axes, compare_shapes
from probekit.forward.capture import capture
from probekit.forward.edit import unedited
from probekit.forward.rest import resting
from probekit.forward.sites import Site, find_site
from probekit.forward.substitution import close
from probekit.models.anatomy import Anatomy
from probekit.models.devices import execution_device
from probekit.models.passes import context_of, text_config


class Layout:
    """The axes of a model: `embedding` of what its embedding module returns, `blocks` of what each block does.

    Measured when it is made, up to the first block of the last stack; other sites when they are asked for. Edits that
    are open are left out of it.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, settled: bool = False) -> None:
        """Raises ModelError if the embedding or the blocks do not run in a forward pass, or it returns no tensor."""
        self._model = model
        self._anatomy = anatomy
        self._settled = settled
        self._others: dict[str, Axes] = {}
        parents = [path.rpartition(".")[0] for path in anatomy.block_paths]
        stacks = {parent: Site(parent, anatomy.blocks[parents.index(parent)]) for parent in dict.fromkeys(parents)}
        table = Site("embedding", anatomy.tables[0])
        with resting(model, settled), torch.no_grad():
            embeddings = anatomy.tables[0](probe_ids(model, anatomy))
        if not isinstance(embeddings, torch.Tensor):
            raise ModelError(
                f"The token embedding '{anatomy.embedding_path}' of {type(model).__name__} returns a "
                f"{type(embeddings).__name__}; expected a tensor. Declare another with the hook probekit_anatomy."
            )
        try:
            axes = self._measure({"embedding": table, **stacks})
        except (ModelError, UsageError) as error:
            raise ModelError(
                f"The token embedding '{anatomy.embedding_path}' or the blocks '{anatomy.blocks_path}' never run in a "
                f"forward pass of {type(model).__name__}, or return no tensor; declare where they are with the hook "
                "probekit_anatomy."
            ) from error
        self._start = axes["embedding"].start
        self._shapes_alone = embeddings.is_meta
        if self._start and not self._shapes_alone:
            self._start = self._find_start(table, embeddings)
        found = {name: self._checked(site, axes[name]) for name, site in {"embedding": table, **stacks}.items()}
        self.embedding = found["embedding"]
        self.blocks = [found[parent] for parent in parents]

    @property
    def ordinary(self) -> bool:
        """Whether embeddings and blocks are `[batch, sequence, width]` as the modules return them."""
        return len(self._anatomy.tables) == 1 and all(axes.in_order for axes in (self.embedding, *self.blocks))

    def site(self, name: str) -> Site:
        """The site of that name, with its axes where its activation is not simply what its module returns."""
        site = find_site(self._model, self._anatomy, name)
        known = site.name == "embedding" or re.fullmatch(r"block\.\d+", site.name)
        return replace(site, axes=self.axes(site)) if known or not self.ordinary else site

    def axes(self, site: Site) -> Axes:
        """The axes of a site, measured once."""
        if match := re.fullmatch(r"block\.(\d+)", site.name):
            return self.blocks[int(match[1])]
        if site.name == "embedding":
            return self.embedding
        if site.name not in self._others:
            self._others[site.name] = self._checked(site, self._measure({site.name: site})[site.name])
        return self._others[site.name]

    def put(self, returned: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """What the embedding module returned, with a prompt's embeddings `[batch, sequence, d]` in their place.

        Raises UsageError if they have another shape than the model's own.
        """
        own = self.embedding.arrange(returned, embeddings.shape[1])
        if own.shape != embeddings.shape:
            raise UsageError(
                f"Embeddings have the shape {tuple(embeddings.shape)}; the model's own have {tuple(own.shape)}."
            )
        return self.embedding.restore(embeddings.to(own.device, own.dtype), returned)

    def _measure(self, sites: Mapping[str, Site]) -> dict[str, Axes]:
        with resting(self._model, self._settled), unedited():
            return measure_axes(self._model, self._anatomy, sites)

    def _checked(self, site: Site, axes: Axes) -> Axes:
        """These axes, if what shapes do not show is known too: which positions are the prompt's, and the order of
        streams and rows. Else the names alone, and the activation is what the module returns. A model without weights
        is taken at its shapes.
        """
        if self._shapes_alone:
            return axes
        known = axes.start in (0, self._start) and (axes.streams == axes.rows == 1 or self._in_turn(site, axes))
        return axes if known else Axes(axes.names, None, None)

    def _in_turn(self, site: Site, axes: Axes) -> bool:
        """Whether streams and rows stand as `Axes` takes them: a prompt has the same in a batch as alone, and a change
        of its last token changes nothing before.
        """
        site = replace(site, axes=axes)
        ids = probe_ids(self._model, self._anatomy)
        other = torch.cat([ids[:, :-1], ids[:, :1]], 1)

        def read(prompts: torch.Tensor) -> torch.Tensor:
            return capture(self._model, {"": site}, self._anatomy.rows(prompts))[""]

        with resting(self._model, self._settled), unedited():
            one, two, both = read(ids), read(other), read(torch.cat([ids, other]))
        causal = ids.shape[1] > 1 and close(one[:, :-1], two[:, :-1]) and not close(one[:, -1:], two[:, -1:])
        return close(both, torch.cat([one, two])) and (axes.streams == 1 or causal)

    def _find_start(self, table: Site, wanted: torch.Tensor) -> int:
        """Where a prompt's embeddings begin among those that the model reads."""
        with resting(self._model, self._settled), unedited():
            ids = probe_ids(self._model, self._anatomy)
            found = capture(self._model, {"embedding": table}, ids)["embedding"]
        length = wanted.shape[1]
        places = range(found.shape[1] - length + 1)
        return next((place for place in places if torch.equal(found[:, place : place + length], wanted)), 0)


def measure_axes(model: nn.Module, anatomy: Anatomy, sites: Mapping[str, Site]) -> dict[str, Axes]:
    """The axes of each site, from three small forwards: one prompt, two prompts, and one prompt half as long.

    Without the third where a model takes one length only.
    """
    raw = {name: replace(site, axes=AS_RETURNED) for name, site in sites.items()}
    shapes: dict[str, dict[tuple[int, int], torch.Size]] = {name: {} for name in sites}
    length = probe_length(model, anatomy)
    shorter = [(1, length // 2)] if anatomy.sequence is None and length > 1 else []
    for prompts, tokens in [(1, length), (2, length), *shorter]:
        ids = probe_ids(model, anatomy)[:, :tokens].expand(prompts, -1)
        try:
            found = capture(model, raw, anatomy.rows(ids))
        except (RuntimeError, ValueError, AssertionError) as error:
            if prompts == 1 or out_of_memory(error):
                raise
            continue  # a model of one prompt at a time: which axis is the batch is not known then
        for name, activation in found.items():
            shapes[name][prompts, tokens] = activation.shape
    return {name: compare_shapes(seen) for name, seen in shapes.items()}


def probe_length(model: nn.Module, anatomy: Anatomy) -> int:
    """The number of tokens for a look at the model."""
    return anatomy.sequence or min(4, vocabulary_size(model, anatomy), context_of(model) or 4)


def probe_ids(model: nn.Module, anatomy: Anatomy) -> torch.Tensor:
    """Token ids `[1, sequence]` for a look at the model: from the middle of its vocabulary on, where special tokens are
    rare, and from its beginning again where there are too few.
    """
    count = vocabulary_size(model, anatomy)
    device = execution_device(anatomy.embedding)
    return (count // 2 + torch.arange(probe_length(model, anatomy), device=device))[None] % count


def vocabulary_size(model: nn.Module, anatomy: Anatomy) -> int:
    """The number of rows `V` of the token embedding."""
    matrix = getattr(anatomy.tables[0], "weight", None)
    return int(matrix.shape[0]) if matrix is not None else int(text_config(model).vocab_size)
