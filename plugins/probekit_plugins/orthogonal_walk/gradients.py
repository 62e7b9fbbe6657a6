"""The gradient of a summed activation, computed in the three ways of the source page.

`∇ Σ_i O_i`, `Σ_i ∇ O_i`, and a backward pass of ones are one thing in exact arithmetic; how far apart they are in the
model's own is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from probekit import Result
from probekit_plugins.batches import Batches
from probekit_plugins.orthogonal_walk.differences import WAYS

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject

OUTPUTS_AT_ONCE = 128


def measure(result: Result, subject: Subject, prompts: Sequence[Prompt], context: Context) -> None:
    """Add the gradient of every way, at each site and prompt, to the tensors."""
    batches = Batches(context)
    for site in dict.fromkeys(str(sequence.labels["site"]) for sequence in result.sequences["prompt"]):
        for number, prompt in enumerate(prompts):
            key = f"gradients/{number}/{site}"
            found = context.stage(key, partial(_ways, subject, prompt, site, context, key, batches))
            batches.limit(int(found["halved_to"]))  # as it was, where it is read back
            for name in ("summed", *WAYS, "outputs"):
                result.tensors[f"{number}/{site}/gradient/{name}"] = found[name]
    result.notes += batches.notes()


def _ways(
    subject: Subject, prompt: Prompt, site: str, context: Context, key: str, batches: Batches
) -> dict[str, torch.Tensor]:
    """The gradient `[T, d]` in each way."""
    layer_map = subject.layer_map(site, input_ids=prompt.input_ids if subject.reads_ids(site) else None)
    embeddings = subject.embed(prompt.input_ids)

    def differentiable(copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = embeddings.expand(copies, -1, -1).clone().requires_grad_()
        with torch.enable_grad():
            return inputs, layer_map(inputs)

    inputs, activation = differentiable(1)
    (summed,) = torch.autograd.grad(activation.sum(), inputs)
    inputs, activation = differentiable(1)
    (of_ones,) = torch.autograd.grad(activation, inputs, torch.ones_like(activation))
    outputs = activation.numel()
    total = torch.zeros_like(summed[0])
    firsts = range(0, outputs, OUTPUTS_AT_ONCE)

    def of_outputs(chosen: torch.Tensor, part: slice) -> torch.Tensor:
        """Each row of the batch is differentiated by one output of its own."""
        inputs, rows = differentiable(part.stop - part.start)
        gradients: torch.Tensor
        (gradients,) = torch.autograd.grad(rows.flatten(1).gather(1, chosen[part, None]).sum(), inputs)
        return gradients

    with context.progress(key, len(firsts)) as progress:
        for first in firsts:
            chosen = torch.arange(first, min(first + OUTPUTS_AT_ONCE, outputs), device=activation.device)
            each = batches.joined(len(chosen), partial(of_outputs, chosen), f"{key}/{first}")
            for gradient in each:  # one by one, as a loop over outputs adds them up
                total = total + gradient
            progress.step()
    numbers = {"outputs": torch.tensor(outputs), "halved_to": torch.tensor(batches.halved_to)}
    return {"summed": summed[0], "per output": total, "backward of ones": of_ones[0], **numbers}
