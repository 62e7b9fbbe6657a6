"""Anatomy: where a model keeps its token embedding, decoder blocks, final norm and unembedding.

Found by structure, not by a list of architectures (`structure.py`), or declared. The embedding and the unembedding are
what the model names as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from probekit.errors import ModelError, nearest
from probekit.models.devices import execution_device
from probekit.models.passes import context_of, neutral_token, on_ids_alone, text_config
from probekit.models.structure import find_blocks, find_norm


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model, each with its module path. `norm` and `unembedding` are None where there is none.

    `blocks` are those of all stacks, where a model has several that run one after another, and `blocks_path` then names
    each stack. The embedding is a list where a model adds up several tables (`tables`), each with its own row of ids.
    `sequence` is the one number of tokens that the model takes, or None if it takes any.
    """

    embedding: nn.Module
    embedding_path: str
    blocks: list[nn.Module]
    blocks_path: str
    block_paths: list[str]
    norm: nn.Module | None
    norm_path: str | None
    unembedding: nn.Module | None
    unembedding_path: str | None
    sequence: int | None = None

    @property
    def tables(self) -> list[nn.Module]:
        """The modules that embed: one, or as many as a model has codebooks, whose embeddings it adds up."""
        return list(self.embedding) if isinstance(self.embedding, nn.ModuleList) else [self.embedding]

    def rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids as the model reads them: a model with codebooks reads a row for each, which get the same ids."""
        count = len(self.tables)
        return input_ids if count == 1 else input_ids.repeat_interleave(count, 0)


def find_anatomy(model: nn.Module, declared: Mapping[str, str | int | None] | None = None) -> Anatomy:
    """Find the parts of a model; `declared` paths (keys `blocks`, `embedding`, `norm`, `unembedding`) override.

    `blocks` may name several stacks, joined by commas, in the order in which they run. The declared key `sequence` is
    the one number of tokens that the model takes.

    Raises ModelError if a part that is needed is not there, or cannot be told from another.
    """
    text_config(model)  # what has none is no model of transformers
    declared_paths, sequence = _checked(declared or {})
    paths = {id(module): path for path, module in model.named_modules()}
    parts: dict[str, nn.Module | None] = {}
    for part, accessor in (("embedding", "get_input_embeddings"), ("unembedding", "get_output_embeddings")):
        if part in declared_paths:
            path = declared_paths[part]
            parts[part] = module_at(model, path) if path else None
        else:
            parts[part] = _ask(model, accessor)
    embedding, unembedding = parts["embedding"], parts["unembedding"]
    if embedding is None or id(embedding) not in paths:
        raise ModelError(
            f"{type(model).__name__} does not say which module embeds its tokens; "
            "declare its path with the hook probekit_anatomy."
        )
    tables = len(embedding) if isinstance(embedding, nn.ModuleList) else 1
    device = execution_device(embedding)
    input_ids = torch.full((tables, sequence or min(2, context_of(model) or 2)), neutral_token(model), device=device)
    named = declared_paths.get("blocks")
    if named:
        stacks = [path.strip() for path in named.split(",")]
    else:
        with on_ids_alone(model):
            stacks = find_blocks(model, embedding, input_ids)
    blocks: list[nn.Module] = []
    block_paths: list[str] = []
    for path in stacks:
        stack = module_at(model, path)
        if not isinstance(stack, nn.ModuleList | nn.Sequential) or len(stack) == 0:
            raise ModelError(f"'{path}' is a {type(stack).__name__}, not a list of decoder blocks.")
        blocks += stack
        block_paths += [f"{path}.{index}" for index in range(len(stack))]
    if "norm" in declared_paths:
        path = declared_paths["norm"]
        norm = module_at(model, path) if path else None
    else:
        with on_ids_alone(model):
            norm = find_norm(model, stacks[-1], blocks, embedding, input_ids)
    return Anatomy(
        embedding=embedding,
        embedding_path=paths[id(embedding)],
        blocks=blocks,
        blocks_path=", ".join(stacks),
        block_paths=block_paths,
        norm=norm,
        norm_path=None if norm is None else paths[id(norm)],
        unembedding=unembedding,
        unembedding_path=None if unembedding is None else paths.get(id(unembedding)),
        sequence=sequence,
    )


def _checked(declared: Mapping[str, str | int | None]) -> tuple[dict[str, str | None], int | None]:
    """What is declared: the paths, and the one length of a sequence. Raises ModelError for anything else."""
    unknown = set(declared) - {"blocks", "embedding", "norm", "unembedding", "sequence"}
    if unknown:
        raise ModelError(
            f"A declared anatomy has the key '{min(unknown)}'; "
            "the keys are blocks, embedding, norm, unembedding and sequence."
        )
    sequence = declared.get("sequence")
    if sequence is not None and (type(sequence) is not int or sequence < 1):
        raise ModelError(f"A declared anatomy has the sequence {sequence!r}; expected a number of tokens from 1 on.")
    paths: dict[str, str | None] = {}
    for part, path in declared.items():
        if part == "sequence":
            continue
        if not (path is None or isinstance(path, str)):
            raise ModelError(f"A declared anatomy has {part} {path!r}; expected the path of a module, or None.")
        paths[part] = path
    return paths, sequence


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path. Raises ModelError with the nearest path if there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        known = [name for name, _ in model.named_modules() if name]
        raise ModelError(f"The model has no module '{path}'.{nearest(path, known)}") from None


def _ask(model: nn.Module, accessor: str) -> nn.Module | None:
    try:
        answer = getattr(model, accessor)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return answer if isinstance(answer, nn.Module) else None
