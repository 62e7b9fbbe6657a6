"""How far the three ways to compute the gradient of a summed activation are apart. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from probekit_plugins.arrays import array

if TYPE_CHECKING:
    from probekit import Result

Scalar = str | int | float | bool | None
# Beside the gradient of the sum.
WAYS = ("per output", "backward of ones")


def gradients(result: Result) -> list[dict[str, Scalar]]:
    """At each site and prompt, how far two other ways are from the gradient of the sum.

    `difference` is the greatest of any entry, `relative_difference` that over the greatest entry of the gradient.
    """
    rows: list[dict[str, Scalar]] = []
    for prompt in result.sequences["prompt"]:
        number, site = prompt.labels["prompt"], prompt.labels["site"]
        prefix = f"{number}/{site}/gradient"
        summed, *others = (array(result.tensors[f"{prefix}/{way}"]).astype(float) for way in ("summed", *WAYS))
        largest = float(abs(summed).max())
        for way, other in zip(WAYS, others, strict=True):
            apart = float(abs(other - summed).max())
            rows.append(
                {
                    "prompt": number,
                    "site": site,
                    "way": way,
                    "difference": apart,
                    "relative_difference": apart / largest if largest else None,
                    "gradient_rms": float(numpy.sqrt(numpy.square(summed).mean())),
                    "outputs": result.tensors[f"{prefix}/outputs"].item(),
                }
            )
    return rows
