"""The sites of a result in the names of its tensors: which they are, in order, and how wide each is. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy

PREFIX = "widths/"


def as_tensors(widths: Mapping[str, int]) -> dict[str, Any]:
    """`widths/PLACE/SITE`: the width of each site."""
    return {
        f"{PREFIX}{place}/{site}": numpy.array([width], dtype=numpy.int64)
        for place, (site, width) in enumerate(widths.items())
    }


def of_tensors(tensors: Mapping[str, Any]) -> dict[str, int]:
    """The same of a result's tensors, which are not in order once they are read back."""
    named = [name.removeprefix(PREFIX).split("/", 1) for name in tensors if name.startswith(PREFIX)]
    places = sorted((int(place), site) for place, site in named)
    return {site: int(tensors[f"{PREFIX}{place}/{site}"].item()) for place, site in places}
