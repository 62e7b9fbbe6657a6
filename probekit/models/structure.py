"""Structure: where a model's decoder blocks and its final norm are, found by what a model holds and what runs in it.

The blocks are the outermost `ModuleList` with as many entries as the text config says. Where that fits more than once,
or not at all, one forward over two tokens decides. Where that does not decide either, it is an error that says how to
declare the anatomy. Never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from probekit.errors import ModelError
from probekit.models.passes import same, text_config, trace


def find_blocks(model: nn.Module, embedding: nn.Module, input_ids: torch.Tensor) -> list[str]:
    """The path of the list of decoder blocks; of several, where the model is made of stacks that run one after another.

    Raises ModelError if structure does not say which list it is.
    """
    config = text_config(model)
    # Where a config has both, `num_hidden_layers` is the encoder's.
    named = [getattr(config, name, None) for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers")]
    count = next((number for number in named if type(number) is int), None)
    lists = {path: part for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    fitting = _outermost([path for path, part in lists.items() if len(part) == count])
    if len(fitting) == 1:
        return fitting
    outermost = _outermost(list(lists))
    if candidates := fitting or [path for path in outermost if len(lists[path]) > 1]:
        first = {f"{path}.0": lists[path][0] for path in candidates}
        ran = {fired.name.rpartition(".")[0] for fired in trace(model, first, input_ids)}
        if len(ran) == 1:
            return list(ran)
    if found := _in_turns(model, {path: lists[path] for path in fitting}, input_ids):
        return found
    if found := _stacks(model, {path: lists[path] for path in outermost}, embedding, input_ids):
        return found
    there = ", ".join(f"{path} ({len(lists[path])})" for path in outermost) or "none"
    raise ModelError(
        f"{'Several lists' if fitting else 'No list'} of modules in {type(model).__name__} could be its {count} "
        f"decoder blocks; the lists are: {there}. Say which one with --blocks PATH (or the hook probekit_anatomy)."
    )


def _outermost(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not any(path.startswith(other + ".") for other in paths)]


def _in_turns(model: nn.Module, lists: dict[str, nn.ModuleList], input_ids: torch.Tensor) -> list[str]:
    """The list that ends each block of a model without a module for one, as xlm: parallel lists that run in turns.

    They run as `a_0 b_0 … z_0 a_1 b_1 …`, and `a_{i+1}` gets what `z_i` returned: then `z` ends the blocks.
    """
    fired = trace(model, _entries(lists), input_ids)
    order = [run.name.rpartition(".")[0] for run in fired]
    turn = list(dict.fromkeys(order))
    if len(turn) < 2 or [run.name for run in fired] != [
        f"{path}.{index}" for index in range(len(lists[turn[0]])) for path in turn
    ]:
        return []
    ends, starts = fired[len(turn) - 1 :: len(turn)], fired[len(turn) :: len(turn)]
    linked = all(same(end.returned, start.given) for end, start in zip(ends, starts, strict=False))
    return [turn[-1]] if linked else []


def _stacks(
    model: nn.Module, lists: dict[str, nn.ModuleList], embedding: nn.Module, input_ids: torch.Tensor
) -> list[str]:
    """The lists of those modules whose outputs the model itself calls its hidden states, as they run one after another.

    Only those that depend on the token embedding: not what else reads the ids, such as blt's patcher.
    """
    layers = tuple(_hidden_state_classes(model))
    lists = {path: part for path, part in lists.items() if all(isinstance(entry, layers) for entry in part)}
    fired = trace(model, _entries(lists), input_ids, source=embedding) if lists else []
    depends = {run.name for run in fired if run.returned is not None and run.returned.requires_grad}
    order = dict.fromkeys(run.name.rpartition(".")[0] for run in fired)
    return [path for path in order if all(f"{path}.{index}" in depends for index in range(len(lists[path])))]


def _hidden_state_classes(model: nn.Module) -> Iterator[type[nn.Module]]:
    """The classes of modules that transformers records hidden states from, as the parts of a model declare them."""
    for part in model.modules():
        declared = getattr(part, "_can_record_outputs", None)
        recorded = declared.get("hidden_states") if isinstance(declared, Mapping) else None
        for recorder in recorded if isinstance(recorded, list | tuple) else [recorded]:
            kind = getattr(recorder, "target_class", recorder)
            if isinstance(kind, type):
                yield kind


def _entries(lists: dict[str, nn.ModuleList]) -> dict[str, nn.Module]:
    return {f"{path}.{index}": entry for path, part in lists.items() for index, entry in enumerate(part)}


def find_norm(
    model: nn.Module, blocks_path: str, blocks: Sequence[nn.Module], embedding: nn.Module, input_ids: torch.Tensor
) -> nn.Module | None:
    """The final norm: the blocks' only sibling made of vectors alone that does not run before them; else the first
    module beside the blocks, or further up, that a forward shows to run after the last of them and to change what it
    gets, and which holds no matrix.
    """
    siblings = _beside(model, blocks_path.rpartition(".")[0], blocks_path, embedding)
    # Some models normalise their embeddings with a sibling too; what runs before the blocks costs next to nothing.
    before = {run.name for run in trace(model, siblings, input_ids, until=blocks[0])}
    only_vectors = [
        module
        for path, module in siblings.items()
        if path not in before and {parameter.dim() for parameter in module.parameters()} == {1}
    ]
    if len(only_vectors) == 1:
        return only_vectors[0]
    parts = blocks_path.split(".")[:-1]
    around: dict[str, nn.Module] = {}
    for depth in range(len(parts), -1, -1):
        around |= _beside(model, ".".join(parts[:depth]), blocks_path, embedding)
    fired = trace(model, {**around, "last block": blocks[-1]}, input_ids)
    names = [run.name for run in fired]
    if "last block" not in names:
        return None
    last = len(names) - 1 - names[::-1].index("last block")
    states = fired[last].returned
    for run in fired[last + 1 :]:
        shapes = {None if part is None else part.shape for part in (run.given, run.returned, states)}
        if len(shapes) == 1 and run.changed and not _holds_a_matrix(around[run.name]):
            return around[run.name]
    return None


def _holds_a_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _beside(model: nn.Module, parent: str, blocks_path: str, embedding: nn.Module) -> dict[str, nn.Module]:
    """The children of the module at `parent`, by path, without the embedding, lists, and what holds the blocks."""
    children = model.get_submodule(parent).named_children()
    paths = {f"{parent}.{name}" if parent else name: module for name, module in children}
    return {
        path: module
        for path, module in paths.items()
        if module is not embedding
        and not isinstance(module, nn.ModuleList)
        and not f"{blocks_path}.".startswith(f"{path}.")
    }
