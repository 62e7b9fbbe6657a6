"""The sentence for memory that ran out in an analysis: what is needed, what is free, and what each option saves."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit.errors import size
from probekit.runs.keeping import OUT_OF_MEMORY

if TYPE_CHECKING:
    from probekit.analysis import Options, Prompt
    from probekit.subject import Subject


def sentence(error: BaseException, subject: Subject, prompts: Sequence[Prompt], options: Options) -> str:
    """One sentence, with estimates where they can be had. What was computed when memory ran out is set free first, so
    that the exception's frames have no variables any more.
    """
    from probekit.description.memory import give_back

    where = " ".join(getattr(error, "__notes__", []))
    asked = _asked(error)
    gradient = _in_gradient(error)
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__
    give_back()
    begin = " ".join(["Out of memory", *filter(None, [where])])
    begin += f" (another {asked} could not be had)" if asked else ""
    try:
        return f"{begin}: {_estimates(subject, prompts, options, where, gradient)}"
    except Exception:  # an estimate is a help, and not worth another failure
        return OUT_OF_MEMORY


def _asked(error: BaseException) -> str:
    """What an allocator was asked for in vain, in words."""
    text = str(error)
    if found := re.search(r"allocate (\d+) bytes", text):
        return size(int(found[1]))
    found = re.search(r"(?:Tried|Unable) to allocate ([\d.]+ [KMGT]iB)", text)
    return found[1] if found else ""


def _in_gradient(error: BaseException) -> bool:
    """Whether a gradient was being computed: whether a variable on the way to the error has one."""
    import torch

    return any(
        isinstance(value, torch.Tensor) and value.requires_grad
        for frame, _ in traceback.walk_tb(error.__traceback__)
        for value in frame.f_locals.values()
    )


def _estimates(subject: Subject, prompts: Sequence[Prompt], options: Options, where: str, gradient: bool) -> str:
    from probekit.description.memory import Kept, free, kept_for_gradient, weights

    ids = max((prompt.input_ids for prompt in prompts), key=lambda ids: ids.shape[1])
    tokens = ids.shape[1]
    held = weights(subject)
    needs, helps = [], []
    field, site = _site(subject, options, where)
    of_length = kept_for_gradient(subject, site, ids) if gradient and site else Kept(0)
    kept = of_length(tokens)
    if kept:
        needs.append(f"the gradient of one row of {tokens} tokens keeps about {size(kept)} up to {site}")
        earlier = _earlier(subject, site)
        if earlier:
            saved = kept - kept_for_gradient(subject, earlier, ids)(tokens)
            helps.append(f"an earlier site (-o {field}={earlier}) about {size(saved)}")
        if tokens > 1:
            helps.append(f"a prompt of half as many tokens about {size(kept - of_length(tokens // 2))}")
    elif tokens > 1:
        helps.append("a prompt of half as many tokens half of what its activations take")
    needs.append(_of_weights(held.in_memory, held.mapped, held.offloaded))
    available = f"{size(free(subject.device))} are free on {subject.device}"
    helps = [*_of_precision(subject, held.in_memory, held.mapped, kept), *helps]
    text = f"{', '.join(part for part in needs if part)}, and {available}"
    return f"{text}; {_listed(helps)}." if helps else f"{text}."


def _of_weights(in_memory: int, mapped: int, offloaded: int) -> str:
    if in_memory:
        return f"the weights take {size(in_memory)}" + (f" and {size(offloaded)} are offloaded" if offloaded else "")
    return "the weights are mapped from their file and need no memory" if mapped else "the weights are offloaded"


def _of_precision(subject: Subject, in_memory: int, mapped: int, kept: int) -> list[str]:
    """What a smaller precision, or weights elsewhere, would save: only what this model has not got yet."""
    import torch

    from probekit.description.weights import Weights

    model = subject.model
    quantised = getattr(model, "hf_quantizer", None) is not None
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    found = []
    if not quantised and dtype in (torch.float32, torch.float64):
        # Weights that are mapped from their file would have to be converted, and then need memory.
        saved = round(in_memory + kept - (in_memory + kept + mapped) * 2 / dtype.itemsize)
        if saved > 0:
            found.append(f"--dtype bfloat16 about {size(saved)}")
    if not quantised and in_memory and not mapped:
        sizes = Weights(model, subject.anatomy).memory()
        whole = sum(parameter.nbytes for parameter in model.parameters())
        for name in ("int8", "nf4"):
            saved = round((whole - sizes[name]["whole"]) * in_memory / whole)
            if saved > 0:
                found.append(f"--quantization {name} about {size(saved)} of the weights")
    spread = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()} & {"cpu", "disk"}
    if subject.device.type != "cpu" and not spread and in_memory:
        found.append(f"--device-map auto with --max-memory up to {size(in_memory)}")
    return found


def _site(subject: Subject, options: Options, where: str) -> tuple[str, str]:
    """The option that names sites, and the site where memory ran out: the deepest one if that is not known."""
    from probekit.analysis import site_expressions

    for expression in site_expressions(options):
        field = next(name for name in type(options).model_fields if getattr(options, name) == expression)
        sites = subject.expand_sites(expression)
        named = [site for site in sites if re.search(rf"(?<![\w.]){re.escape(site)}(?![\w.])", where)]
        order = subject.sites()
        return field, max(named or sites, key=lambda site: order.index(site) if site in order else -1)
    return "", ""


def _earlier(subject: Subject, site: str) -> str:
    """A site half as deep, or nothing if there is none."""
    depth = len(subject.anatomy.blocks)
    if found := re.fullmatch(r"block\.(\d+)", site):
        depth = int(found[1])
    elif site not in ("norm", "logits"):
        return ""
    return f"block.{depth // 2}" if depth else ""


def _listed(helps: Sequence[str]) -> str:
    first, *others = helps
    return ", ".join([first.replace(" about ", " saves about ", 1), *others])
