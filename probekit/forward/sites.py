"""Sites: names for the places whose activation can be read or replaced.

`embedding`, `block.3`, `block.-1`, `norm`, `logits`, or a dotted module path such as `transformer.h.3.mlp`. Where
options take several, a grammar: `blocks` is every block, `block.0:6:2` a slice of them, and commas join.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probekit.errors import UsageError, nearest
from probekit.forward.axes import AS_RETURNED, Axes
from probekit.models.anatomy import Anatomy


@dataclass(frozen=True)
class Site:
    """A named place and the module whose output it is. `logits` is the output of the whole model.

    The activation is `[batch, sequence, width]` where the axes of the output are known, else what the module returns.
    """

    name: str
    module: nn.Module
    axes: Axes = AS_RETURNED

    def read(self, output: Any, length: int | None = None) -> torch.Tensor:
        """The activation in what the module returned for prompts of that length.

        Raises UsageError if the module returned other axes than it was measured to.
        """
        returned = read(output, self.name)
        if not self.axes.fit(returned, length):
            expected = ", ".join(map(str, self.axes.names))
            raise UsageError(
                f"The site '{self.name}' returned {tuple(returned.shape)}, where [{expected}] was expected; name the "
                "path of its module to read it as it is."
            )
        return self.axes.arrange(returned, length)

    def write(self, output: Any, activation: torch.Tensor) -> Any:
        """The same output with its activation replaced: the rest, the type and the order of axes are kept."""
        return replace(output, self.axes.restore(activation, read(output, self.name)))


def site_names(anatomy: Anatomy) -> list[str]:
    """Every named site of a model, in the order in which they run."""
    embedding = ["embedding"] if len(anatomy.tables) == 1 else []
    names = [*embedding, *(f"block.{index}" for index in range(len(anatomy.blocks)))]
    return [*names, *(["norm"] if anatomy.norm is not None else []), "logits"]


def find_site(model: nn.Module, anatomy: Anatomy, name: str) -> Site:
    """The site of that name, named canonically (`block.-1` becomes `block.11`).

    Raises UsageError, listing the sites, if there is none.
    """
    if match := re.fullmatch(r"block\.(-?[0-9]{1,18})", name):
        index, count = int(match[1]), len(anatomy.blocks)
        if not -count <= index < count:
            raise UsageError(f"There is no site '{name}': the model has {count} blocks, block.0 to block.{count - 1}.")
        return Site(f"block.{index % count}", anatomy.blocks[index])
    if name == "embedding":
        if len(anatomy.tables) > 1:
            raise UsageError(
                f"The embedding of this model is the sum of {len(anatomy.tables)} tables; name one of them, such as "
                f"{anatomy.embedding_path}.0, or a block."
            )
        return Site(name, anatomy.embedding)
    if name == "norm" and anatomy.norm is not None:
        return Site(name, anatomy.norm)
    if name == "logits":
        return Site(name, model)
    modules = dict(model.named_modules())
    if name and name in modules:
        if type(modules[name]).forward is nn.Module.forward:
            raise UsageError(
                f"'{name}' is a list of modules, which never runs itself; name one of them, such as {name}.0."
            )
        return Site(name, modules[name])
    known = site_names(anatomy)
    last = len(anatomy.blocks) - 1
    listed = ", ".join(site for site in known if not site.startswith("block."))
    raise UsageError(
        f"There is no site '{name}'; the sites are block.0 to block.{last}, {listed}, and module paths such as "
        f"{anatomy.block_paths[0]}.{nearest(name, [*known, *modules])}"
    )


def expand_sites(model: nn.Module, anatomy: Anatomy, grammar: str) -> list[str]:
    """The canonical names that a site expression stands for, without repeats, in the order given.

    Raises UsageError if a part of it names no site.
    """
    count = len(anatomy.blocks)
    return expand_expression(grammar, range(count), count, lambda part: find_site(model, anatomy, part).name)


def expand_expression(grammar: str, blocks: Sequence[int], count: int, canonical: Callable[[str], str]) -> list[str]:
    """What a site expression stands for, where `blocks` of a model's `count` are there.

    `canonical` gives the name of a site that is named by itself, and raises UsageError if it is not there.
    """
    names: list[str] = []
    for part in (part.strip() for part in grammar.split(",")):
        match = re.fullmatch(r"block\.(-?[0-9]{1,18})?:(-?[0-9]{1,18})?(?::(-?[0-9]{1,18})?)?", part)
        if part in ("blocks", "every-block"):
            if not blocks:
                canonical("block.0")
            names += [f"block.{index}" for index in blocks]
        elif match:
            start, stop, step = (int(piece) if piece else None for piece in match.groups())
            if step == 0:
                raise UsageError(f"'{part}' has a step of 0; expected block.START:STOP:STEP with a step other than 0.")
            chosen = range(count)[slice(start, stop, step)]
            if not chosen:
                raise UsageError(f"'{part}' is no block of a model with {count} blocks.")
            names += [canonical(f"block.{index}") for index in chosen]
        else:
            names.append(canonical(part))
    return list(dict.fromkeys(names))


def read(output: Any, site: str) -> torch.Tensor:
    """The tensor in what a module returned: the tensor itself, the logits of a model output, or item 0."""
    value = output
    if isinstance(output, Mapping) and output:
        value = output[_activation_key(output)]
    elif isinstance(output, tuple | list) and output:
        value = output[0]
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"The site '{site}' returns a {type(output).__name__} without a tensor in front; choose another site."
        )
    return value


def replace(output: Any, value: torch.Tensor) -> Any:
    """The same output with its activation replaced: the rest and the type are kept."""
    if isinstance(output, torch.Tensor):
        return value
    if isinstance(output, Mapping):
        changed: Any = type(output)(**output)
        changed[_activation_key(output)] = value
        return changed
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: value})
    rest: Sequence[Any] = output[1:]
    return type(output)((value, *rest))


def _activation_key(output: Mapping[str, Any]) -> str:
    """Where a model output keeps its activation: its logits, where a loss may stand in front of them, else item 0."""
    return "logits" if "logits" in output else next(iter(output))
