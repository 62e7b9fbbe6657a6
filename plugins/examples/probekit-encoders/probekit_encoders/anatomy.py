"""Where an encoder keeps its parts: seen in one forward pass over three tokens, not looked up by its name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from probekit import ModelError

# Not what positions (which count up), token types or padding look like: what is given these embeds tokens.
TOKENS = [[29, 28, 27]]


def find_parts(model: nn.Module) -> Mapping[str, str | None]:
    """The paths of an encoder's `embedding`, `blocks` and `norm`; it has no `unembedding`.

    Raises ModelError if the model does not run on token ids alone, or its activations are not `[batch, sequence, …]`.
    """
    kind = type(model).__name__
    ids = torch.tensor(TOKENS, device=next(model.parameters()).device)
    calls = _watch(model, ids)

    # `get_input_embeddings()` will not do: what it returns for T5EncoderModel is never called.
    embedding = next((path for path, given, result in calls if _same(given, ids) and _is_activation(result, ids)), None)
    if embedding is None:
        raise ModelError(
            f"{kind} embeds its tokens in no one module, or pads or reorders them: probekit cannot read it."
        )
    parts: dict[str, str | None] = {"embedding": embedding, "unembedding": None}

    # The config's number of layers will not do: ALBERT has one block, which runs that many times. But where there are
    # several lists (XLM) the key is left out: then probekit looks for itself, or says that --blocks is needed.
    lists = [path for path, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    lists = [path for path in lists if any(path == _parent(called) for called, _, _ in calls)]
    lists = [path for path in lists if not any(path.startswith(other + ".") for other in lists)]
    if len(lists) == 1:
        last = max(index for index, (called, _, _) in enumerate(calls) if _parent(called) == lists[0])
        if not _is_activation(_first(calls[last][2]), ids):
            raise ModelError(f"The blocks of {kind} pad or reorder its tokens: probekit cannot read it.")
        # The norm may stand anywhere: it runs after the blocks and has vectors for weights.
        after = [path for path, _, result in calls[last + 1 :] if _is_activation(result, ids)]
        norm = next((path for path in after if _has_only_vectors(model.get_submodule(path))), None)
        parts |= {"blocks": lists[0], "norm": norm}
    return parts


def _watch(model: nn.Module, ids: torch.Tensor) -> list[tuple[str, Any, Any]]:
    """Each module that runs, in the order in which they end, with what it is given first and what it returns."""
    calls: list[tuple[str, Any, Any]] = []

    def note(path: str, _module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append((path, inputs[0] if inputs else None, output))

    handles = [part.register_forward_hook(partial(note, path)) for path, part in model.named_modules() if path]
    try:
        with torch.no_grad():
            model(input_ids=ids)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{type(model).__name__} does not run on token ids alone: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _same(value: Any, other: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == other.dtype and torch.equal(value, other)


def _is_activation(value: Any, ids: torch.Tensor) -> bool:
    """Whether it is `[batch, sequence, width]`."""
    return isinstance(value, torch.Tensor) and value.dim() == 3 and value.shape[:2] == ids.shape


def _has_only_vectors(module: nn.Module) -> bool:
    return {parameter.dim() for parameter in module.parameters()} == {1}
