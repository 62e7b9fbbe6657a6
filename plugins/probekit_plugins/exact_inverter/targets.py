"""What is to be inverted: activations of one prompt at one site, from the model or from a file, and what is known of
how far they are from exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.autoencoder.through import Reconstruct, replaced
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.exact_inverter import ExactInverterOptions, Rounding

# The norm of normal noise of w entries is below σ(√w + DEVIATIONS) but for one case in a thousand million.
DEVIATIONS = 6.0
STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Target:
    """Activations `[T, w]` of a prompt of T tokens, at least fp32.

    `known` `[T]` says at which positions. There `rounding` `[T]` bounds how far rounding has moved the activation, in
    its L2 norm, and `sigma` `[T]` is the standard deviation of noise on each of its entries. `truth` are the prompt's
    token ids, where they are known: nothing but the figures of a report is made of them.
    """

    activations: torch.Tensor
    known: torch.Tensor
    rounding: torch.Tensor
    sigma: torch.Tensor
    truth: list[int] | None

    @property
    def norms(self) -> torch.Tensor:
        """`‖a_t‖`, `[T]`."""
        norms: torch.Tensor = self.activations.norm(dim=-1)
        return norms

    @property
    def noisy(self) -> bool:
        """Whether there is noise at any position."""
        return bool((self.sigma > 0).any())

    def blur(self) -> torch.Tensor:
        """A bound of `‖a_t − O(x)_t‖` for the right tokens by rounding and noise, `[T]`."""
        return self.rounding + self.sigma * (math.sqrt(self.activations.shape[-1]) + DEVIATIONS)


def captured(subject: Subject, prompt: Prompt, site: str, known: torch.Tensor) -> Target:
    """The activations of a prompt, which passes through the model alone."""
    found = at_least_single(subject.capture(prompt.input_ids, [site])[site][0]).to(subject.device)
    subject.check_finite(found, f"The activation at {site}")
    zeros = found.new_zeros(len(found))
    return Target(found, known.to(found.device), zeros, zeros, prompt.input_ids[0].tolist())


def reconstructed(target: Target, reconstruct: Reconstruct, error: float, skip_first: int) -> Target:
    """The target after an autoencoder: `x̂` in place of `x` from position `skip_first` on.

    `error` is the root mean square of `x − x̂` in an entry, as far as it is known beforehand: noise, to an attacker.
    """
    counted = torch.arange(len(target.activations), device=target.activations.device) >= skip_first
    values = replaced(target.activations, reconstruct, counted)
    return replace(target, activations=values, sigma=torch.where(counted, error, 0.0).to(values))


def blurred(target: Target, rounding: Rounding, noise: float, context: Context, label: str) -> Target:
    """The target after noise, `N(0, noise · rms(a_t))` on each entry beside what noise there is, and then rounding.

    int8 has one scale for each position: `max |a_t| / 127`. What is beyond a type's greatest number is unknown.
    """
    values = target.activations
    root_mean_square = values.square().mean(-1).sqrt()
    if noise:
        drawn = torch.randn(values.shape, generator=context.generator(label))
        values = values + noise * root_mean_square[:, None] * drawn.to(values)
    bound, known = torch.zeros_like(target.rounding), target.known
    if rounding == "int8":
        scale = (values.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
        values = (values / scale).round() * scale
        bound = scale[:, 0] * math.sqrt(values.shape[-1]) / 2
    elif rounding != "none":
        bound = rounding_bound(values, STORED[rounding])
        values = values.to(STORED[rounding]).to(target.activations)
        known = known & values.isfinite().all(-1)
        values = torch.where(known[:, None], values, 0)
    sigma = torch.hypot(target.sigma, noise * root_mean_square)
    return replace(target, activations=values, known=known, rounding=target.rounding + bound, sigma=sigma)


def rounding_bound(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How far rounding to a type of floating point may move rows `[T, w]`, in L2: half a unit in the last place of each
    entry, which is at most half the type's epsilon relative to it, and half the least number there is.
    """
    kind = torch.finfo(dtype)
    least = kind.smallest_normal * kind.eps / 2
    bound: torch.Tensor = kind.eps / 2 * values.norm(dim=-1) / (1 - kind.eps / 2) + math.sqrt(values.shape[-1]) * least
    return bound


def from_file(subject: Subject, options: ExactInverterOptions, site: str, width: int) -> list[Target]:
    """The prompts of a safetensors file, in the order of its tensors' names. Raises UsageError with one sentence."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(str(options.activations))
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"The activations '{path}' cannot be read as safetensors: {error}.") from None
    targets = []
    for name, tensor in sorted(tensors.items()):
        what = f"The tensor '{name}' of '{path}'"
        if not tensor.is_floating_point() or tensor.dim() not in (2, 3) or 0 in tensor.shape:
            raise UsageError(
                f"{what} is {str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}; expected "
                "activations in floating point, [tokens, width] or [prompts, tokens, width]."
            )
        if tensor.shape[-1] != width:
            raise UsageError(
                f"{what} has activations of width {tensor.shape[-1]}, but those of this model at {site} have {width}; "
                "name the model and the site that they belong to."
            )
        for values in tensor if tensor.dim() == 3 else tensor[None]:
            targets.append(_stored(subject, values, what, options))
    if not targets:
        raise UsageError(f"The file '{path}' has no tensors; expected activations.")
    return targets


def _stored(subject: Subject, values: torch.Tensor, what: str, options: ExactInverterOptions) -> Target:
    """One prompt of a file. What stands after its last known position is no part of it."""
    known = torch.isfinite(values.float().norm(dim=-1))
    if not bool(known.any()):
        raise UsageError(
            f"{what} holds NaN, infinity or more than fp32 can add up at every position, so that nothing is known."
        )
    length = int(known.nonzero()[-1]) + 1
    if subject.context is not None and length > subject.context:
        raise UsageError(f"{what} has {length} positions, but the model's context is {subject.context}.")
    known = known[:length] & known_positions(length, options.positions)
    found = torch.where(known[:, None], at_least_single(values[:length]), 0).to(subject.device)
    bound = found.new_zeros(length)
    if torch.finfo(values.dtype).bits < 32:
        bound = rounding_bound(found, values.dtype)
    sigma = options.noise * found.square().mean(-1).sqrt()
    return Target(found, known.to(found.device), bound, sigma, None)


def known_positions(length: int, positions: list[int] | str) -> torch.Tensor:
    """Which of so many positions are known, `[length]`. Raises UsageError for one that is not there."""
    if isinstance(positions, str):
        return torch.ones(length, dtype=torch.bool)
    outside = [position for position in positions if not -length <= position < length]
    if outside or not positions:
        raise UsageError(
            f"The option positions is {positions}; expected positions of the prompt, from 0 to {length - 1} or "
            f"negative from the end, and at least one."
        )
    known = torch.zeros(length, dtype=torch.bool)
    known[positions] = True
    return known


def check_one_site(sites: Sequence[str]) -> str:
    """The site that a file's activations belong to. Raises UsageError if several are named."""
    if len(sites) != 1:
        raise UsageError(
            f"The activations of a file belong to one site, but {len(sites)} are named; give it with -o sites=…"
        )
    return sites[0]
