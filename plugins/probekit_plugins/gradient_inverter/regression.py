"""A start that knows the layer: the embeddings to be expected, given the activation at each position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from probekit_plugins.token_likelihood import TokenLikelihood, sampled_prompts

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.batches import Batches

# Prompts that are learnt from have at least so many tokens, so that a prompt's start rarely depends on its neighbours.
SHORTEST = 32


def expected_embeddings(
    subject: Subject, site: str, target: torch.Tensor, lengths: Sequence[int], context: Context, batches: Batches
) -> torch.Tensor:
    """`E[e | a]` at each position of prompts of these lengths: `[P, T, w]` → `[P, T, d]`, zero at padding.

    The ridge regression from activations to embeddings that `TokenLikelihood` fits on prompts which the model writes
    itself, or which are random: nothing is known of the prompts but their activations. Computed once for a site; a run
    that is resumed reads it back. Raises AnalysisError where no token belongs to a position of the site.
    """

    def prompts() -> dict[str, torch.Tensor]:
        length = max(SHORTEST, 1 << (max(lengths) - 1).bit_length())
        sampled = sampled_prompts(subject, length, context, "regression", batches)
        return {str(number): ids for number, ids in enumerate(sampled)}

    def expected() -> dict[str, torch.Tensor]:
        learnt = context.stage("regression/prompts", prompts)
        sampled = [learnt[str(number)].to(subject.device) for number in range(len(learnt))]
        fit = TokenLikelihood(subject, site, sampled, batches, context)
        found = torch.zeros(*target.shape[:2], subject.width)
        for number, length in enumerate(lengths):
            found[number, :length] = fit.embeddings(target[number, :length]).to(found)
        return {"embeddings": found}

    return context.stage(f"{site}/regression", expected)["embeddings"]
