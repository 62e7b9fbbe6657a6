"""What the inverter minimises: the distance of an activation from the target, for each row of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Prompt, Subject
    from probekit_plugins.gradient_inverter import GradientInverterOptions

Map = Callable[[torch.Tensor], torch.Tensor]


def site_map(
    subject: Subject,
    site: str,
    options: GradientInverterOptions,
    input_ids: torch.Tensor | None,
    padding: torch.Tensor | None = None,
    through: Map | None = None,
    repeated: bool = True,
) -> Map:
    """`O_l`, followed by the model's head if the options say so, with dropout on if they do. What the activation passes
    through before the head is an autoencoder.
    """
    ids = input_ids if subject.reads_ids(site) else None
    layer_map: Map = subject.layer_map(
        site, input_ids=ids, attention_mask=padding, dropout=options.dropout, repeated=repeated
    )
    activation = layer_map if through is None else lambda embeddings: through(layer_map(embeddings))
    if options.head == "none":
        return activation
    with_norm = options.head == "model"
    return lambda embeddings: subject.unembed(activation(embeddings), norm=with_norm)


def matched_positions(prompts: Sequence[Prompt], options: GradientInverterOptions) -> torch.Tensor:
    """Which positions of each prompt are matched, `[P, T]` of zeros and ones; padding is zero.

    Raises UsageError for a position that a prompt does not have.
    """
    longest = max(len(prompt.tokens) for prompt in prompts)
    mask = torch.zeros(len(prompts), longest)
    for row, prompt in zip(mask, prompts, strict=True):
        length = len(prompt.tokens)
        if options.target_positions == "all":
            row[:length] = 1
            continue
        for position in options.target_positions:
            if not -length <= position < length:
                raise UsageError(
                    f"There is no target position {position} in a prompt of {length} tokens: {prompt.text!r}."
                )
            row[position % length] = 1
    return mask


class Objective:
    """`‖O(e) − t‖` for each row, `[B, T, d]` → `[B]`, over the positions that are matched; where the embeddings are.

    With `o` and `t` flattened over them: L1 `Σ|o − t|`, L2 `√Σ(o − t)²`, cosine `1 − o·t / (‖o‖‖t‖)`, mixed
    `α(1 − cos φ) + β Σ|o − t|`. Rows share nothing, so the gradient of their sum is each row's own.
    """

    def __init__(
        self, layer_map: Map, target: torch.Tensor, mask: torch.Tensor, options: GradientInverterOptions
    ) -> None:
        """`target` is `[B, T, width]`, `mask` `[B, T]`."""
        self._map = layer_map
        self._target = target
        # Where every position is matched, the mask would only cost time.
        self._mask = None if bool((mask == 1).all()) else mask.to(target.device)[..., None]
        self._options = options

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.distances(self._map(embeddings)).to(embeddings.device)

    def distances(self, activation: torch.Tensor) -> torch.Tensor:
        """`‖o − t‖` for each row of activations `o`, `[B, T, width]` → `[B]`."""
        target = self._target
        if self._mask is not None:
            activation, target = activation * self._mask, target * self._mask
        kind = self._options.loss
        if kind in ("l1", "l2"):
            difference = at_least_single(activation - target).flatten(1)
            norms: torch.Tensor = torch.linalg.vector_norm(difference, ord=1 if kind == "l1" else 2, dim=1)
            return norms
        flat, wanted = at_least_single(activation).flatten(1), at_least_single(target).flatten(1)
        angle = 1 - torch.nn.functional.cosine_similarity(flat, wanted, dim=1)
        if kind == "cosine":
            return angle
        return self._options.alpha * angle + self._options.beta * (flat - wanted).abs().sum(1)
