"""Continuation: activations of many token sequences that all begin with the same prefix.

The prefix is computed once. Its keys and values, or whatever state a model keeps, are in a cache that every call reads
and none changes, so that a call of `K` sequences of `m` new tokens computes `K × m` positions instead of `K × (n + m)`.
Whether a model gives the same that way depends on its architecture: it is tried, on a small prompt, and where it does
not, whole sequences are computed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from probekit.errors import UsageError, out_of_memory
from probekit.forward.capture import capture
from probekit.forward.edit import is_edited, unedited
from probekit.forward.hooks import hooks_of
from probekit.forward.layout import Layout, probe_ids
from probekit.forward.rest import resting
from probekit.forward.sites import Site
from probekit.models.anatomy import Anatomy
from probekit.models.passes import text_config

# Raises UsageError for ids that the model does not have, or for a sequence of a length that it does not take.
Check = Callable[[torch.Tensor, int], None]


class Continuation:
    """The activations at a site of a prefix's continuations: call it with token ids `[K, m]`, get `[K, m, width]`.

    That is what `capture` gives of `K` sequences of `n + m` tokens at their last `m` positions, up to rounding. Where
    `cached`, the first call computes the prefix, up to the site, and each call `K × m` positions; in memory stay the
    keys and values of one prefix, and while a call runs `K` of them for one block at a time, or for all blocks where a
    model keeps a state of another kind. Otherwise each call computes `K × (n + m)`.

    Whole sequences are computed as well while an edit is open, which may look at positions of the prefix. The model's
    weights are taken to stay as they are.

    A call raises UsageError for ids of another shape, outside the vocabulary, or beyond the context with the prefix,
    and at a site whose activation is not one for each position.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        site: Site,
        prefix: torch.Tensor,
        check: Check,
        *,
        cached: bool,
        settled: bool = False,
        padding: int | None = None,
    ) -> None:
        """Of a prefix `[1, n]`. Ids with the `padding` of a model that reads where that stands are computed whole."""
        self.site = site.name
        self.cached = cached and prefix.shape[1] > 0
        self._prefix = prefix
        self._check = check
        self._padding = padding
        self._passes = _Passes(model, anatomy, site, settled)
        self._cache: _PrefixCache | None = None
        self._hooks: list[int] = []

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """The activation at the new positions. Raises UsageError as the class says."""
        if tokens.dim() != 2 or 0 in tokens.shape or not is_ids(tokens):
            raise UsageError(
                f"Tokens have the shape {tuple(tokens.shape)} and the type {tokens.dtype}; expected token ids "
                "[sequences, tokens], at least one of each."
            )
        self._check(tokens, self._prefix.shape[1])
        tokens = tokens.to(self._prefix)
        if self.cached and self._may_be_cached(tokens):
            if (hooks := self._passes.hooks()) != self._hooks:  # others' hooks may change what the prefix gives
                self._cache = None
            if self._cache is None:
                self._cache, self._hooks = self._passes.prefix(self._prefix), hooks
            activation = self._passes.cached(self._cache, tokens)
            if activation.shape[:2] == tokens.shape:
                return activation
        return self._passes.whole(self._prefix, tokens)

    def _may_be_cached(self, tokens: torch.Tensor) -> bool:
        """Whether the prefix is the same within these sequences as it is alone, and no edit is open."""
        length = self._prefix.shape[1]
        reads_padding = self._padding is not None and any(
            bool((ids == self._padding).any()) for ids in (self._prefix, tokens)
        )
        return not (reads_padding or self._passes.turns(length, length + tokens.shape[1]) or self._passes.is_edited())


class Caching:
    """Whether a model gives from a prefix's cache what it gives of whole sequences, tried once for each site."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, layout: Layout, settled: bool) -> None:
        self._model = model
        self._anatomy = anatomy
        self._layout = layout
        self._settled = settled
        self._tried: dict[str, bool] = {}

    def works(self, site: Site) -> bool:
        """Whether it does, for one new token and for several."""
        if site.name not in self._tried:
            with unedited():
                self._tried[site.name] = self._try(site)
        return self._tried[site.name]

    def _try(self, site: Site) -> bool:
        probe = probe_ids(self._model, self._anatomy)
        if self._anatomy.sequence is not None or probe.shape[1] < 2:
            return False
        passes = _Passes(self._model, self._anatomy, site, self._settled)
        # By the weights: some models carry activations on in fp32 that they compute in less.
        halved = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in self._model.parameters())
        tolerance = 0.03 if halved else 1e-4
        new = min(2, probe.shape[1] - 1)
        prefix, tokens = probe[:, :-new], torch.cat([probe[:, -new:], probe[:, :new]])
        try:
            whole, alone = passes.whole(prefix, tokens), passes.whole(prefix[:, :0], tokens)
            cache = passes.prefix(prefix)
            return all(
                _brings(passes.cached(cache, tokens[:, :count]), whole[:, :count], alone[:, :count], tolerance)
                for count in (new, 1)
            )
        except Exception as error:
            if out_of_memory(error):
                raise
            return False  # it takes no cache, or none of that kind


class _Passes:
    """A model's passes to a site: over whole sequences, over a prefix, and over new tokens behind it."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, site: Site, settled: bool) -> None:
        self._model = model
        self._anatomy = anatomy
        self._site = site
        self._settled = settled
        parameters = inspect.signature(type(model).forward).parameters
        self._argument = "cache_params" if "cache_params" in parameters else "past_key_values"

    def whole(self, prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The activation at the new positions of `[K, n + m]` tokens, without a cache."""
        ids = torch.cat([prefix.expand(len(tokens), -1), tokens], 1)
        activation = self._captured(ids)
        if activation.shape[:2] != ids.shape:
            raise UsageError(
                f"The site '{self._site.name}' returned {tuple(activation.shape)} for {ids.shape[0]} sequences of "
                f"{ids.shape[1]} tokens; a continuation needs a site with one activation for each of them."
            )
        return activation[:, prefix.shape[1] :].clone()  # not a view: the prefix's positions need not stay in memory

    def prefix(self, prefix: torch.Tensor) -> _PrefixCache:
        """The cache that one pass over `[1, n]` tokens fills, up to the site."""
        model: Any = self._model
        cache = DynamicCache(config=model.config)
        # A window is a matter of the mask, as without a cache: not every model has one that its config gives a size of.
        layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
        # Made as they come where all are of one kind: a config may count another stack's.
        cache = DynamicCache() if all(map(_is_plain, layers)) else _PrefixCache(layers)
        self._captured(prefix, cache)
        return _PrefixCache(cache.layers)

    def cached(self, cache: _PrefixCache, tokens: torch.Tensor) -> torch.Tensor:
        """The activation of `[K, m]` tokens that follow the prefix."""
        if tokens.shape[1] == 1 or cache.is_plain:
            return self._captured(tokens, cache.reading(len(tokens)))
        # Some models forget a state of another kind when they are given several tokens.
        kept = cache.copied(len(tokens))
        return torch.cat([self._captured(token, kept) for token in tokens.split(1, 1)], 1)

    def _captured(self, ids: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        inputs: dict[str, Any] = {} if cache is None else {self._argument: cache}
        with resting(self._model, self._settled):
            return capture(self._model, {"": self._site}, self._anatomy.rows(ids), **inputs)[""]

    def turns(self, length: int, total: int) -> bool:
        """Whether positions are turned by other angles in sequences of this total length than in the shorter prefix."""
        angles = getattr(text_config(self._model), "rope_parameters", None) or {}
        kinds = [angles, *(kind for kind in angles.values() if isinstance(kind, dict))]
        bounds = (kind.get("original_max_position_embeddings") for kind in kinds)
        return any(length <= bound < total for bound in bounds if bound is not None)

    def hooks(self) -> list[int]:
        """The keys of all hooks that are on the model now: torch gives each one of its own."""
        return [key for module in self._model.modules() for hooks in hooks_of(module) for key in hooks]

    def is_edited(self) -> bool:
        return is_edited(self._model)


class _PrefixCache(DynamicCache):
    """The cache of a prefix, as transformers' models read and write it."""

    def __init__(self, layers: list[Any]) -> None:
        Cache.__init__(self, layers=layers)

    @property
    def is_plain(self) -> bool:
        """Whether all that it holds are keys and values, for every position."""
        return all(map(_is_plain, self.layers))

    def reading(self, count: int) -> _Reading:
        """A cache of so many sequences for one pass: what is only keys and values is shared, the rest copied."""
        return _Reading([layer if _is_plain(layer) else _copied(layer, count) for layer in self.layers])

    def copied(self, count: int) -> _PrefixCache:
        """A cache of so many sequences to go on with."""
        return _PrefixCache([_copied(layer, count) for layer in self.layers])


class _Reading(_PrefixCache):
    """A cache whose keys and values are repeated for the sequences of a pass only while their block runs, and kept as
    they are.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix's keys and values with the new ones behind them."""
        layer: Any = self.layers[layer_idx]
        if not _is_plain(layer):
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return _joined(layer.keys, key_states), _joined(layer.values, value_states)


def _is_plain(layer: Any) -> bool:
    """Whether a layer of a cache holds keys and values for every position, and no more."""
    return type(layer) is DynamicLayer


def _joined(prefix: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.cat([prefix.expand(len(new), *prefix.shape[1:]), new], -2)


def _copied(layer: Any, count: int) -> Any:
    """A layer of one sequence for so many, to be written to."""
    copied = copy.deepcopy(layer)
    copied.reorder_cache(torch.zeros(count, dtype=torch.long))
    return copied


def _brings(cached: torch.Tensor, whole: torch.Tensor, alone: torch.Tensor, tolerance: float) -> bool:
    """Whether new tokens have from a cache what they have in whole sequences: within rounding, and by far nearer to it
    than without the prefix, so that a cache that is passed over shows.
    """
    if cached.shape != whole.shape:
        return False
    error, effect = ((other.float() - whole.float()).norm() for other in (cached, alone))
    return bool(error <= tolerance * whole.float().norm() and error <= effect / 4)


def is_ids(tokens: torch.Tensor) -> bool:
    """Whether a tensor may hold token ids by its type."""
    return not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
