"""The lens itself, on one prompt: a subject and token ids in, tensors out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, UsageError

if TYPE_CHECKING:
    from probekit import Context, Subject

# Scores that are held at a time: 32 MiB in fp32, and a few copies of them. The [sites, positions, V] of a whole prompt
# would be 10 GB for GPT-2 XL and its context.
SCORES = 2**23


def look(
    subject: Subject,
    input_ids: torch.Tensor,
    sites: Sequence[str],
    top_k: int,
    norm: bool,
    context: Context,
    label: str = "lens",
) -> dict[str, torch.Tensor]:
    """What the lens reads at each site and position of one prompt, `input_ids` `[1, S]`.

    With `p` the lens's distribution at a site and `p_final` the model's own; the last of the `R = sites + 1` rows is
    the model itself:

    - `ids`, `probability` `[R, S, k]`: the most probable tokens of p;
    - `kl` `[R, S]`: `KL(p_final ‖ p) = Σ p_final log₂(p_final / p)`, bits: what is lost by taking p for p_final;
    - `entropy` `[R, S]`: `−Σ p log₂ p`, bits;
    - `final_probability` `[R, S]`: what p gives to the most probable token of p_final;
    - `next_probability`, `next_rank` `[R, S − 1]`: what p gives to the token that follows in the prompt, and its rank:
      1 and the number of tokens that are more probable;
    - `last_block` `[3]`: at the last block, with the norm, the largest difference between the lens's logits and the
      model's own, the largest logit, and the relative precision of the block's activation.

    One forward pass, then the head on one site and some positions at a time, in fp32 or, if the model is, fp64. Raises
    AnalysisError for NaN and infinity, or where the model does not predict what it embeds, UsageError for a `top_k`
    beyond the tokens that it predicts.
    """
    captured = subject.capture(input_ids, [*sites, "block.-1", "logits"])
    for site, activation in captured.items():
        subject.check_finite(activation, f"The activation at {site}")
    logits = captured["logits"][0]
    ids = input_ids[0].to(logits.device)
    if top_k > logits.shape[-1]:
        raise UsageError(f"top_k is {top_k}; expected 1 to {logits.shape[-1]}, the tokens that the model predicts.")
    if int(ids.max()) >= logits.shape[-1]:
        raise AnalysisError(
            f"The model has logits for its first {logits.shape[-1]} tokens only, and the prompt has the token "
            f"{int(ids.max())}; the lens cannot say how probable that is: leave it out of the prompt."
        )

    def scores(site: str, part: slice, norm: bool) -> torch.Tensor:
        """The lens's logits `[positions, V]`."""
        if site == "logits":
            return _at_least_single(logits[part])
        read = subject.unembed(captured[site][0, part], norm=norm and site != "norm")  # which is normed already
        if read.shape[-1] != logits.shape[-1]:
            raise AnalysisError(
                f"The head scores {read.shape[-1]} tokens and the model {logits.shape[-1]}: they cannot be compared."
            )
        return _at_least_single(read.to(logits.device))

    parts = _parts(*logits.shape)
    precision = torch.tensor(torch.finfo(captured["block.-1"].dtype).eps, device=logits.device)
    rows: list[dict[str, torch.Tensor]] = []
    differences = []
    with context.progress(label, len(parts) * len(sites)) as progress:
        for part in parts:
            own = scores("logits", part, norm)
            final = own.log_softmax(-1)
            following = ids.roll(-1)[part]  # of the last position a stand-in, which is cut off below
            figures = []
            for site in sites:
                figures.append(_figures(scores(site, part, norm).log_softmax(-1), final, following, top_k))
                progress.step()
            figures.append(_figures(final, final, following, top_k))
            rows.append({name: torch.stack([figure[name] for figure in figures]) for name in figures[0]})
            apart = (scores("block.-1", part, norm=True) - own).abs().max()
            differences.append(torch.stack([apart, own.abs().max(), precision.to(own.dtype)]))

    found = {name: torch.cat([row[name] for row in rows], dim=1) for name in rows[0]}
    found |= {name: found[name][:, :-1].contiguous() for name in ("next_probability", "next_rank")}
    return {**found, "last_block": torch.stack(differences).amax(0)}


def _figures(lens: torch.Tensor, final: torch.Tensor, following: torch.Tensor, top_k: int) -> dict[str, torch.Tensor]:
    """The figures of one site from log-probabilities `[positions, V]`, the lens's and the model's own."""
    best = lens.topk(top_k)
    predicted = lens.gather(-1, final.argmax(-1, keepdim=True))
    follows = lens.gather(-1, following[:, None])
    return {
        "ids": best.indices,
        "probability": best.values.exp(),
        # Not below zero but by rounding.
        "kl": (final.exp() * (final - lens)).sum(-1).div(math.log(2)).clamp_min(0),
        "entropy": (lens.exp() * -lens).sum(-1).div(math.log(2)).clamp_min(0),
        "final_probability": predicted[:, 0].exp(),
        "next_probability": follows[:, 0].exp(),
        "next_rank": 1 + (lens > follows).sum(-1),
    }


def _at_least_single(values: torch.Tensor) -> torch.Tensor:
    """Probabilities of 16 bits would not add up to one."""
    return values if values.dtype == torch.float64 else values.float()


def _parts(positions: int, vocabulary: int) -> list[slice]:
    """Slices of the positions, each with about `SCORES` scores at most."""
    size = max(1, SCORES // vocabulary)
    return [slice(start, start + size) for start in range(0, positions, size)]
