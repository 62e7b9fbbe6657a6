"""Thinning: fewer points than there are, where more could not be told apart on a page. No torch."""

from __future__ import annotations

# A line of a chart has at most about this many points.
POINTS = 200


def thinned(count: int, most: int = POINTS) -> list[int]:
    """Indices below `count`, evenly spread, about `most` of them at most, the last always among them."""
    stride = max(1, -(-count // most))
    return [*range(0, count - 1, stride), count - 1]
