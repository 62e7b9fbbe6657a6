"""The rows of a batch of activations, as analyses that add them up take them: flat, finite, in fp32 at least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import ActivationBatch


def finite_rows(batch: ActivationBatch, site: str, width: int | None = None) -> torch.Tensor:
    """The activations of the prompts' own tokens, `[tokens, width]`: further axes of a site become one.

    Raises AnalysisError, naming the site, if one is NaN or infinite, or if there are not `width` figures a token as
    there were before.
    """
    rows = at_least_single(batch.rows(site).flatten(1))
    finite = torch.isfinite(rows).all(1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        prompt, position = int(batch.row_prompts[first]), int(batch.positions[first])
        raise AnalysisError(
            f"The activation at {site} is NaN or infinite, first at position {position} of prompt {prompt + 1}; "
            "a wider dtype (--dtype float32) may help."
        )
    if width is not None and rows.shape[1] != width:
        raise AnalysisError(
            f"The site {site} has {rows.shape[1]} figures for a token where it had {width} before, so that they cannot "
            "be added up; choose one whose width does not depend on the prompt, such as a block."
        )
    return rows


def in_double(rows: torch.Tensor) -> torch.Tensor:
    """The same in float64, where they are; on the CPU if their device has none."""
    return (rows.cpu() if rows.device.type == "mps" else rows).double()
