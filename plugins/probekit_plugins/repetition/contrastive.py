"""Contrastive search, which transformers does not carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit_plugins.head import predicted_tokens

if TYPE_CHECKING:
    from probekit import Loop, Subject
    from probekit_plugins.batches import Batches


def ending_tokens(subject: Subject) -> list[int]:
    """The tokens that would end a text, those that have a logit."""
    ends = getattr(getattr(subject.model, "generation_config", None), "eos_token_id", None)
    named = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return [index for index in named if 0 <= index < predicted_tokens(subject)]


def contrastive_search(
    subject: Subject, prompt: torch.Tensor, new_tokens: int, k: int, alpha: float, loop: Loop, batches: Batches
) -> torch.Tensor:
    """`argmax_v (1 − α) p(v) − α max_j cos(h_v, h_j)` over the k likeliest tokens, token by token (Su et al., eq. 5).

    `h_v` is the last hidden state (after the final norm where there is one) at the candidate's own position, `h_j`
    those of all positions before. The candidates are one batch; no cache: each token is two plain forwards. `[1, T]` →
    `[1, T + new]`. Tokens that would end the text are left out.
    """
    site = "norm" if "norm" in subject.sites() else "block.-1"
    ends = ending_tokens(subject)
    ids = loop.state["ids"].to(prompt.device) if loop.start else prompt

    def state() -> dict[str, torch.Tensor]:
        return {"ids": ids}

    for _ in range(loop.start, new_tokens):
        logits = subject.capture(ids, ["logits"])["logits"][0, -1].float()
        logits[ends] = -torch.inf
        probabilities, candidates = logits.softmax(-1).topk(min(k, len(logits) - len(ends)))
        longer = torch.cat([ids.expand(len(candidates), -1), candidates[:, None].to(ids.device)], 1)

        def likenesses(rows: slice, longer: torch.Tensor = longer) -> torch.Tensor:
            states = torch.nn.functional.normalize(subject.capture(longer[rows], [site])[site].float(), dim=-1)
            return (states[:, :-1] @ states[:, -1:].mT)[..., 0].amax(1)

        likeness = batches.joined(len(longer), likenesses, "contrastive search")
        scores = (1 - alpha) * probabilities - alpha * likeness.to(probabilities.device)
        ids = longer[scores.argmax().to(longer.device)][None]
        loop.end_step(state)
    return ids
