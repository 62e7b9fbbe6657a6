"""Describe: everything about a model that is known before its weights are loaded, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from probekit import forward
from probekit.description.abilities import abilities, site_axes
from probekit.description.placement import describe_placement
from probekit.description.weights import Weights
from probekit.errors import ModelError
from probekit.models.anatomy import Anatomy, find_anatomy
from probekit.models.loading import LoadedModel, provided_model
from probekit.models.passes import context_of
from probekit.models.skeleton import forwards_of, is_skeleton, needs_values, skeleton
from probekit.models.spec import ModelSpec
from probekit.plugins import Plugins
from probekit.subject import Subject, declared_anatomy, load_spec, subject_of

# What no skeleton can tell, and a subject checks when it is made.
ONLY_WEIGHTS_TELL = ("substitution", "conditioned_on_ids")


def describe(spec: ModelSpec, plugins: Plugins | None = None, load: bool = False) -> dict[str, Any]:
    """What the model is, where its parts are, what it takes and what it can do; every number is a number.

    The model is built from its config alone. Where a plugin's loader makes it, that loader decides what is loaded; with
    `load` the model is loaded too, and `loaded` says what only the weights could tell.

    Raises ModelError with one sentence if the model cannot be built or read, UsageError if the spec contradicts itself.
    """
    provided = provided_model(spec, plugins)
    subject: Subject | None = None
    unknown: Sequence[str] = ()
    if provided is not None:
        subject = subject_of(provided, spec, plugins)
        found, anatomy = provided, subject.anatomy
    else:
        found = skeleton(spec)
        if load:
            subject = load_spec(spec, plugins)
        anatomy, unknown = _anatomy(found.model, spec, plugins, subject)
    runs = (found.model, anatomy)
    axes, text = site_axes(*runs)
    if subject is not None and text["supported"] is None:
        runs = (subject.model, subject.anatomy)
        axes, text = site_axes(*runs)
    weights = Weights(found.model, anatomy)
    return {
        "model": spec.name,
        **_identity(found),
        "context": context_of(found.model),
        "vocabulary": forward.vocabulary_size(found.model, anatomy),
        "width": _width(found.model, anatomy),
        "tokenizer": _tokenizer(found),
        "anatomy": _parts(anatomy, unknown),
        "sites": {name: None if names is None else list(names) for name, names in axes.items()},
        "parameters": weights.counts(),
        "memory": weights.memory(),
        "placement": describe_placement(found.model, spec) if is_skeleton(found.model) else None,
        "supports": abilities(*runs, weights, axes, text),
        "loaded": None if subject is None else _loaded(subject),
    }


def _anatomy(
    model: nn.Module, spec: ModelSpec, plugins: Plugins | None, subject: Subject | None
) -> tuple[Anatomy, Sequence[str]]:
    """The parts of a skeleton, and which of them only the weights show."""
    declared = declared_anatomy(model, spec, plugins)
    if subject is not None:  # what runs in the loaded model has decided
        there = subject.anatomy
        declared = {
            "blocks": there.blocks_path,
            "embedding": there.embedding_path,
            "norm": there.norm_path,
            "unembedding": there.unembedding_path,
            "sequence": there.sequence,
        }
    try:
        with forwards_of(model):
            return find_anatomy(model, declared), ()
    except ModelError as error:
        if not needs_values(error):
            raise
    try:
        with forwards_of(model):
            return find_anatomy(model, {**declared, "norm": None}), ("norm",)
    except ModelError as error:
        if not needs_values(error):
            raise
        raise ModelError(
            f"Which modules are the blocks of '{spec.name}' shows only in a forward pass with its weights; name them "
            "with --blocks PATH, or use --load."
        ) from error


def _identity(found: LoadedModel) -> dict[str, Any]:
    config = getattr(found.model, "config", None)
    facts: dict[str, Any] = {
        key: found.facts[key] for key in ("source", "has_weights", "revision", "weights_sha256") if key in found.facts
    }
    own = getattr(config, "quantization_config", None)
    method = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", None)
    return {
        **facts,
        "architecture": type(found.model).__name__,
        "model_type": getattr(config, "model_type", None) or None,
        "dtype": found.facts["dtype"],
        "checkpoint_dtype": found.facts.get("checkpoint_dtype"),
        "checkpoint_dtype_said_by": found.facts.get("checkpoint_dtype_said_by"),
        "checkpoint_quantization": None if method is None else str(getattr(method, "value", method)),
    }


def _tokenizer(found: LoadedModel) -> dict[str, Any]:
    if found.tokenizer is None:
        return {"class": None, "tokens": None, "why": str(found.facts.get("tokenizer", "none"))}
    return {"class": type(found.tokenizer).__name__, "tokens": len(found.tokenizer), "why": ""}


def _width(model: nn.Module, anatomy: Anatomy) -> int | None:
    width = getattr(anatomy.tables[0], "embedding_dim", None)
    return int(width) if isinstance(width, int) else None


def _parts(anatomy: Anatomy, unknown: Sequence[str]) -> dict[str, Any]:
    def part(path: str | None, module: nn.Module | None) -> dict[str, Any] | None:
        return None if module is None else {"path": path, "class": type(module).__name__}

    return {
        "embedding": part(anatomy.embedding_path, anatomy.embedding),
        "blocks": {
            "path": anatomy.blocks_path,
            "count": len(anatomy.blocks),
            "classes": list(dict.fromkeys(type(block).__name__ for block in anatomy.blocks)),
        },
        "norm": part(anatomy.norm_path, anatomy.norm),
        "unembedding": part(anatomy.unembedding_path, anatomy.unembedding),
        "unknown": list(unknown),
        "tied": _tied(anatomy.tables, anatomy.unembedding),
        "sequence": anatomy.sequence,
    }


def _tied(tables: Sequence[nn.Module], head: nn.Module | None) -> bool:
    """Whether the head reads with the embedding's own matrix."""
    matrices = {id(parameter) for table in tables for parameter in table.parameters()}
    return head is not None and any(id(parameter) in matrices for parameter in head.parameters())


def _loaded(subject: Subject) -> dict[str, Any]:
    """What only the weights tell: making the subject has checked that substitution is what the plain forward is."""
    kept = ("source", "revision", "weights_seed", "weights_sha256", "dtype", "quantization", "device")
    facts = {key: subject.facts[key] for key in kept if key in subject.facts}
    return {**facts, "substitution": True, "conditioned_on_ids": subject.reads_ids("block.-1")}
