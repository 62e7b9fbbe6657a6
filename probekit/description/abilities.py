"""Abilities: what probekit can do with a model, tried on its skeleton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from probekit import forward
from probekit.description.weights import Weights
from probekit.errors import ModelError, UsageError, out_of_memory
from probekit.models.anatomy import Anatomy
from probekit.models.passes import trace
from probekit.models.skeleton import forwards_of, needs_values

LATER = "known once it is loaded"
LAST, HEAD = "the last block", "the head"
BEFORE_THE_HEAD = "more than a norm stands before the head: use the site logits instead"

Answer = dict[str, Any]


def _answer(supported: bool | None, why: str = "") -> Answer:
    return {"supported": supported, "why": why}


def site_axes(model: nn.Module, anatomy: Anatomy) -> tuple[dict[str, tuple[str | int, ...] | None], Answer]:
    """The axes of each site, None where they are not known, and whether the model runs on text alone."""
    sites = {name: forward.find_site(model, anatomy, name) for name in forward.site_names(anatomy)}
    sites["embedding"] = forward.Site("embedding", anatomy.tables[0])
    found: dict[str, tuple[str | int, ...] | None] = dict.fromkeys(sites)
    try:
        with forwards_of(model), torch.no_grad():
            ids = forward.probe_ids(model, anatomy)
            forward.capture(model, {"logits": sites["logits"]}, anatomy.rows(ids))
            try:
                measured = forward.measure_axes(model, anatomy, sites)
            except (ModelError, UsageError):  # one site never runs, or returns no tensor
                measured = _one_by_one(model, anatomy, sites)
    except Exception as error:  # what a model raises where it is given text alone
        if out_of_memory(error):
            raise
        if needs_values(error):
            return found, _answer(None, LATER)
        return found, _answer(False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return {**found, **{name: axes.names for name, axes in measured.items()}}, _answer(True)


def _one_by_one(model: nn.Module, anatomy: Anatomy, sites: Mapping[str, forward.Site]) -> dict[str, forward.Axes]:
    measured: dict[str, forward.Axes] = {}
    for name, site in sites.items():
        try:
            measured |= forward.measure_axes(model, anatomy, {name: site})
        except (ModelError, UsageError):
            continue
    return measured


def abilities(
    model: nn.Module,
    anatomy: Anatomy,
    weights: Weights,
    axes: Mapping[str, tuple[str | int, ...] | None],
    text: Answer,
) -> dict[str, Answer]:
    """What is supported: each `{"supported": yes, no or not known, "why": …}`."""
    silent = [name for name, found in axes.items() if found is None]
    if text["supported"]:
        reached = _answer(True, f"all sites but {', '.join(silent)}" if silent else "")
        gradients = _gradients(model, anatomy)
    else:
        reached = gradients = _answer(text["supported"], LATER if text["supported"] is None else "")
    generates = bool(getattr(model, "can_generate", lambda: False)())
    found = weights.converted()
    share = found["parameters"] / max(weights.counts()["total"], 1)
    if found["layers"]:
        layers = f"{found['layers']} linear layers, {100 * share:.1f} % of the parameters"
    else:
        built = hasattr(model, "all_tied_weights_keys")
        layers = "no linear layers that are converted" if built else "it is not transformers that loads it"
    return {
        "text alone": text,
        "capture": reached,
        "edit": reached,
        "gradients": gradients,
        "generation": _answer(generates, "" if generates else f"{type(model).__name__} does not generate text"),
        "unembedding": _unembedding(model, anatomy, text),
        "quantization": _answer(found["layers"] > 0, layers),
    }


def _gradients(model: nn.Module, anatomy: Anatomy) -> Answer:
    """Whether the activation of the last block has a graph back to the embeddings, as the layer map computes it."""
    last = forward.find_site(model, anatomy, "block.-1")
    try:
        with forwards_of(model):
            layout = forward.Layout(model, anatomy, settled=True)
            with torch.no_grad():
                ids = forward.probe_ids(model, anatomy).expand(2, -1)
                embeddings = torch.stack([table(ids) for table in anatomy.tables]).sum(0)
            layer_map = forward.LayerMap(model, anatomy, layout, last, settled=True)
            activation = layer_map(embeddings.detach().requires_grad_())
    except Exception as error:  # as above
        if out_of_memory(error):
            raise
        if needs_values(error):
            return _answer(None, LATER)
        return _answer(False, (str(error).splitlines() or [type(error).__name__])[0])
    return _answer(activation.requires_grad, "" if activation.requires_grad else "the model detaches its activations")


def _unembedding(model: nn.Module, anatomy: Anatomy, text: Answer) -> Answer:
    """Whether the head reads the final norm of the last block, as far as shapes and what runs between them show it."""
    if anatomy.unembedding is None:
        return _answer(False, "there is no head")
    if not text["supported"]:
        return _answer(text["supported"], LATER if text["supported"] is None else "")
    if forward.head_width(anatomy) is None:
        return _answer(False, BEFORE_THE_HEAD)
    inside = {part for block in anatomy.blocks for part in block.modules()}
    matrices = {
        path: module
        for path, module in model.named_modules()
        if module not in inside and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    }
    try:
        with forwards_of(model), torch.no_grad():
            ids = anatomy.rows(forward.probe_ids(model, anatomy))
            fired = trace(model, {**matrices, LAST: anatomy.blocks[-1], HEAD: anatomy.unembedding}, ids)
    except Exception as error:  # as above
        if out_of_memory(error):
            raise
        return _answer(None, LATER) if needs_values(error) else _answer(False, BEFORE_THE_HEAD)
    runs = {run.name: run for run in fired}  # the last of each
    returned, given = (part if part is None else part.shape for part in (runs[LAST].returned, runs[HEAD].given))
    order = [run.name for run in fired]
    between = order[len(order) - order[::-1].index(LAST) : order.index(HEAD)]
    alike = returned is not None and given is not None and (len(returned), returned[-1]) == (len(given), given[-1])
    other = [path for path in between if matrices[path] is not anatomy.unembedding]
    return _answer(True) if alike and not other else _answer(False, BEFORE_THE_HEAD)
