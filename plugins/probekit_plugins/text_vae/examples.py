"""What a reader looks at: texts written again, samples from the prior, interpolations and analogies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit_plugins.text_vae import figures

if TYPE_CHECKING:
    from probekit import Context, Result
    from probekit_plugins.text_vae import TextVaeOptions
    from probekit_plugins.text_vae.made import Maker
    from probekit_plugins.text_vae.reading import Batch, Reading
    from probekit_plugins.text_vae.vae import Vae


def keep_examples(
    vae: Vae, name: str, reading: Reading, maker: Maker, options: TextVaeOptions, context: Context, result: Result
) -> None:
    """Rows of the tables `reconstructions`, `samples`, `interpolations` and `analogies`, written greedily but for the
    samples.

    Operations are on means: `z₁ + t (z₂ − z₁)` between two texts, and `z_C + (z_B − z_A)`: as A is to B, so C to D.
    """
    count = min(options.examples, len(reading.held_out) // 3)
    if not count:
        return
    held, tables = reading.held_out[: 3 * count], result.tables
    mean = figures.latents(vae, held).mean
    length = reading.held_out.decoder.ids.shape[1] + len(vae.reader.end)

    def texts(z: torch.Tensor, generator: torch.Generator | None = None) -> list[str]:
        return [vae.reader.text(row, maker.subject) for row in figures.written(vae, z, length, generator)]

    own = _texts(vae, held, maker)
    _, again = figures.exact(vae, held[:count], figures.latents(vae, held[:count]))
    for text, row, ids in zip(own, again, held.decoder.rows(), strict=False):
        written = vae.reader.text(row, maker.subject)
        tables["reconstructions"].append({"name": name, "text": text, "written": written, "exact": row == ids})
    generator = context.generator(f"prior samples/{name}")
    drawn = torch.randn(count, mean.shape[1], generator=generator, dtype=torch.double)
    for greedy, sampled in zip(texts(drawn), texts(drawn, generator), strict=True):
        tables["samples"].append({"name": name, "greedy": greedy, "sampled": sampled})
    first, second, third = mean[0::3], mean[1::3], mean[2::3]
    points = torch.linspace(0, 1, options.interpolation_steps, dtype=torch.double)
    for pair in range(min(2, count)):
        way = first[pair] + points[:, None] * (second[pair] - first[pair])
        for t, text in zip(points.tolist(), texts(way), strict=True):
            ends = {"from": own[3 * pair], "to": own[3 * pair + 1]}
            tables["interpolations"].append({"name": name, "pair": pair, **ends, "t": t, "written": text})
    for place, text in enumerate(texts(third + second - first)):
        a, b, c = own[3 * place : 3 * place + 3]
        tables["analogies"].append({"name": name, "a": a, "b": b, "c": c, "written": text})


def _texts(vae: Vae, batch: Batch, maker: Maker) -> list[str]:
    return [vae.reader.text(row, maker.subject) for row in batch.decoder.rows()]
