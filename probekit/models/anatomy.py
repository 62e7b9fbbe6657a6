"""Anatomy: where a model keeps its token embedding, decoder blocks, final norm and unembedding.

Found by structure, not by a list of architectures: the blocks are the outermost `ModuleList` with as many entries as
the text config says, the embedding and the unembedding are what the model names as such, and the final norm is the
blocks' only sibling made of vectors alone that does not run before them. Where structure fits more than once, one
traced forward over two tokens decides; where that does not decide either, it is an error that says how to declare the
anatomy. Never a guess.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from probekit.errors import ModelError, nearest


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model, each with its module path. `norm` and `unembedding` are None where there is none.

    `sequence` is the one number of tokens that the model takes, or None if it takes any.
    """

    embedding: nn.Module
    embedding_path: str
    blocks: list[nn.Module]
    blocks_path: str
    norm: nn.Module | None
    norm_path: str | None
    unembedding: nn.Module | None
    unembedding_path: str | None
    sequence: int | None = None

    def block(self, index: int) -> nn.Module:
        return self.blocks[index]


def text_config(model: nn.Module) -> Any:
    """The config of the text decoder: the model's own, or the text part of a composite one."""
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no `config`; probekit reads models built by transformers.")
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def find_anatomy(model: nn.Module, declared: Mapping[str, str | int | None] | None = None) -> Anatomy:
    """Find the parts of a model; `declared` paths (keys `blocks`, `embedding`, `norm`, `unembedding`) override.

    The declared key `sequence` is the one number of tokens that the model takes.

    Raises ModelError if a part that is needed is not there, or cannot be told from another.
    """
    declared_paths, sequence = _checked(declared or {})
    paths = {id(module): path for path, module in model.named_modules()}
    blocks_path = declared_paths.get("blocks") or _find_blocks(model, sequence)
    block_list = module_at(model, blocks_path)
    if not isinstance(block_list, nn.ModuleList | nn.Sequential) or len(block_list) == 0:
        raise ModelError(f"'{blocks_path}' is a {type(block_list).__name__}, not a list of decoder blocks.")
    parts: dict[str, nn.Module | None] = {}
    for part, accessor in (("embedding", "get_input_embeddings"), ("unembedding", "get_output_embeddings")):
        if part in declared_paths:
            path = declared_paths[part]
            parts[part] = module_at(model, path) if path else None
        else:
            parts[part] = _ask(model, accessor)
    embedding = parts["embedding"]
    if embedding is None or id(embedding) not in paths:
        raise ModelError(
            f"{type(model).__name__} does not say which module embeds its tokens; "
            "declare its path with the hook probekit_anatomy."
        )
    if "norm" in declared_paths:
        path = declared_paths["norm"]
        norm = module_at(model, path) if path else None
    else:
        norm = _find_norm(model, blocks_path, list(block_list), embedding, sequence)
    unembedding = parts["unembedding"]
    return Anatomy(
        embedding=embedding,
        embedding_path=paths[id(embedding)],
        blocks=list(block_list),
        blocks_path=blocks_path,
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


def neutral_token(model: nn.Module) -> int:
    """A token id that is not padding: some models derive positions or masks from where padding stands."""
    return 1 if getattr(text_config(model), "pad_token_id", None) == 0 else 0


def without_cache(model: nn.Module) -> dict[str, bool]:
    """The argument that keeps a forward from filling a cache, which some models keep on their own modules."""
    return {"use_cache": False} if _takes_use_cache(type(model).forward) else {}


@cache
def _takes_use_cache(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters
    return "use_cache" in parameters or any(part.kind is part.VAR_KEYWORD for part in parameters.values())


def _ask(model: nn.Module, accessor: str) -> nn.Module | None:
    try:
        answer = getattr(model, accessor)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return answer if isinstance(answer, nn.Module) else None


def _find_blocks(model: nn.Module, sequence: int | None) -> str:
    config = text_config(model)
    # Where a config has both, `num_hidden_layers` is the encoder's.
    named = [getattr(config, name, None) for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers")]
    count = next((number for number in named if type(number) is int), None)
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    sizes = {path: len(module) for path, module in lists if len(module)}
    outermost = _outermost([path for path in sizes if sizes[path] == count])
    if len(outermost) == 1:
        return outermost[0]
    # Of several that fit, one runs; or none fits the config, and there is one only that runs.
    candidates = outermost or [path for path in _outermost(list(sizes)) if sizes[path] > 1]
    if candidates:
        first_blocks = {path: module_at(model, path + ".0") for path in candidates}
        fired = [path for path, _ in _trace(model, first_blocks, sequence)]
        if len(set(fired)) == 1:
            return fired[0]
    there = ", ".join(f"{path} ({sizes[path]})" for path in _outermost(list(sizes))) or "none"
    problem = "Several lists of modules" if outermost else "No list of modules"
    raise ModelError(
        f"{problem} in {type(model).__name__} could be its {count} decoder blocks; the lists are: {there}. "
        "Say which one with --blocks PATH (or the hook probekit_anatomy)."
    )


def _outermost(paths: list[str]) -> list[str]:
    return [path for path in paths if not any(path.startswith(other + ".") for other in paths)]


def _find_norm(
    model: nn.Module, blocks_path: str, blocks: list[nn.Module], embedding: nn.Module, sequence: int | None
) -> nn.Module | None:
    parent_path = blocks_path.rpartition(".")[0]
    siblings = {
        name: module
        for name, module in module_at(model, parent_path).named_children()
        if module is not embedding and not isinstance(module, nn.ModuleList)
    }
    # Some models normalise their embeddings with a sibling too; what runs before the blocks costs next to nothing.
    for name, _ in _trace(model, siblings, sequence, until=blocks[0]):
        siblings.pop(name, None)
    only_vectors = {
        name: module
        for name, module in siblings.items()
        if (shapes := [parameter.dim() for parameter in module.parameters()]) and max(shapes) == 1
    }
    if len(only_vectors) == 1:
        return next(iter(only_vectors.values()))
    # A norm without parameters, or none at all: what runs after the last block, and changes what it gets, decides.
    fired = _trace(model, {**siblings, "last block": blocks[-1]}, sequence)
    names = [name for name, _ in fired]
    if "last block" not in names:
        return None
    last = len(names) - 1 - names[::-1].index("last block")
    shape = fired[last][1]
    after = [name for name, own_shape in fired[last + 1 :] if own_shape == shape and shape is not None]
    matrices = {name for name in after if any(parameter.dim() > 1 for parameter in siblings[name].parameters())}
    norms = [name for name in after if name not in matrices]
    return siblings[norms[0]] if norms else None


class _FarEnough(BaseException):
    """Raised by our own hook to end a traced forward; not an Exception, so that nothing takes it for a failure."""


def _trace(
    model: nn.Module, modules: Mapping[str, nn.Module], sequence: int | None, until: nn.Module | None = None
) -> list[tuple[str, torch.Size | None]]:
    """Which of these modules ran in one forward over two tokens, or as many as the model takes, in order, with the
    shape of what they returned, or None if that is no tensor or just what they got. The forward ends where `until`
    begins.
    """
    fired: list[tuple[str, torch.Size | None]] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            unchanged = bool(inputs) and isinstance(inputs[0], torch.Tensor) and _same(inputs[0], first)
            fired.append((name, first.shape if isinstance(first, torch.Tensor) and not unchanged else None))

        return hook

    def end(_module: nn.Module, _inputs: Any) -> None:
        raise _FarEnough

    tokens = torch.full((1, sequence or 2), neutral_token(model), device=next(model.parameters()).device)
    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    if until is not None:
        handles.append(until.register_forward_pre_hook(end))
    try:
        with evaluating(model), torch.no_grad():
            model(input_ids=tokens, **without_cache(model))
    except _FarEnough:
        pass
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} does not run on token ids alone "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); probekit reads causal language models."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return fired


def _same(first: torch.Tensor, second: Any) -> bool:
    return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while open, and each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
