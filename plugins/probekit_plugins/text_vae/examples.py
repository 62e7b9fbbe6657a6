"""What a reader looks at: texts written again, samples from the prior, interpolations and analogies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit import TokenSequence
from probekit_plugins.text_vae import figures
from probekit_plugins.text_vae.tables import ANALOGY, GREEDY, INTERPOLATION, RECONSTRUCTION, SAMPLED, padded

if TYPE_CHECKING:
    from probekit import Context, Result
    from probekit_plugins.text_vae import TextVaeOptions
    from probekit_plugins.text_vae.made import Maker
    from probekit_plugins.text_vae.reading import Batch, Reading
    from probekit_plugins.text_vae.vae import Vae


def keep_examples(
    vae: Vae, name: str, reading: Reading, maker: Maker, options: TextVaeOptions, context: Context, result: Result
) -> None:
    """What is written by one autoencoder, greedily but for the samples, and the texts that it was given.

    Operations are on means: `z₁ + t (z₂ − z₁)` between two texts, and `z_C + (z_B − z_A)`: as A is to B, so C to D.
    """
    count = min(options.examples, len(reading.held_out) // 3)
    if not count:
        return
    held = reading.held_out[: 3 * count]
    mean = figures.latents(vae, held).mean
    length = reading.held_out.decoder.ids.shape[1] + len(vae.reader.end)

    def keep(kind: str, texts: list[str]) -> None:
        result.sequences.setdefault("written", []).extend(
            TokenSequence([], [], {"name": name, "as": kind, "text": text}) for text in texts
        )

    def texts(z: torch.Tensor, generator: torch.Generator | None = None) -> list[str]:
        return [vae.reader.text(row, maker.subject) for row in figures.written(vae, z, length, generator)]

    result.sequences["texts"] = [TokenSequence([], [], {"text": text}) for text in _texts(vae, held, maker)]
    again = figures.again(vae, held[:count], figures.latents(vae, held[:count]))
    result.tensors[f"examples/{name}"] = padded(again)
    keep(RECONSTRUCTION, [vae.reader.text(row, maker.subject) for row in again])
    generator = context.generator(f"prior samples/{name}")
    drawn = torch.randn(count, mean.shape[1], generator=generator, dtype=torch.double)
    keep(GREEDY, texts(drawn))
    keep(SAMPLED, texts(drawn, generator))
    first, second, third = mean[0::3], mean[1::3], mean[2::3]
    points = torch.linspace(0, 1, options.interpolation_steps, dtype=torch.double)
    for pair in range(min(2, count)):
        keep(INTERPOLATION, texts(first[pair] + points[:, None] * (second[pair] - first[pair])))
    keep(ANALOGY, texts(third + second - first))


def _texts(vae: Vae, batch: Batch, maker: Maker) -> list[str]:
    return [vae.reader.text(row, maker.subject) for row in batch.decoder.rows()]
