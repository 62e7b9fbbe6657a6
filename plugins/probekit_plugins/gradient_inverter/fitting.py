"""How many rows of a descent fit into memory, estimated before it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from probekit import rows_that_fit

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.gradient_inverter import GradientInverterOptions
    from probekit_plugins.gradient_inverter.spaces import Space

# Tensors of the size of x for each optimiser: x, its gradient, a state, and what an update computes for a moment.
TENSORS = {"descent": 4, "adam": 8, "lbfgs": 48}
# How often the recorded embeddings are there while a state is saved, and how often when rows are joined.
WHILE_SAVED, WHEN_JOINED = 4, 2


def of_the_head(subject: Subject, tokens: int, options: GradientInverterOptions) -> int:
    """What one row's logits take where the model's head follows the site: themselves, and what a loss makes of them."""
    return 0 if options.head == "none" else 4 * 8 * tokens * subject.vocabulary


def rows_of_a_descent(
    subject: Subject,
    site: str,
    tokens: int,
    count: int,
    options: GradientInverterOptions,
    space: Space,
    loss: Callable[[], object],
) -> int:
    """How many of `count` rows descend at once; `loss` computes that of one row, with its graph."""
    size = 4 * tokens * space.width * TENSORS[options.optimizer]
    if space.has_prior:
        size += 8 * tokens * space.candidates
    size += of_the_head(subject, tokens, options)
    recorded = 4 * tokens * subject.width * (-(-options.steps // options.record_every) + 1)
    beside, after = size + WHILE_SAVED * recorded, WHEN_JOINED * recorded
    return rows_that_fit(subject, site, tokens, count, loss, beside, after)
