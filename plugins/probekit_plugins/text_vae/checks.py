"""Whether what is trained is what it is taken for: that a decoder sees no token before it is to write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit import UsageError, out_of_memory
from probekit_plugins.corpus import Texts

if TYPE_CHECKING:
    from probekit_plugins.text_vae.vae import Vae

# What changes before the token that was changed, as a share of what changes there: rounding is far below it.
LEAK = 1e-3
# The same where texts of two lengths are compared, which are not rounded alike.
ROUNDING = 1e-2


def alike_but_the_last(tokens: int) -> torch.Tensor:
    """Two texts of three token ids, `[2, 3]`, that differ in their last."""
    first, second, third = tokens // 2, tokens // 3, tokens // 4
    return torch.tensor([[first, second, third], [first, second, (third + 1) % tokens]])


def looks_ahead(values: torch.Tensor) -> bool:
    """Whether what a model gives for those two, `[2, 3, …]`, differs before their last tokens."""
    change = (values[0] - values[1]).abs().flatten(1).amax(1)
    return bool(change[:-1].max() > LEAK * change[-1])


def _apart(alone: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether what a model gives for their first two tokens alone differs from what it gives for them there."""
    change = (values[0, -1] - values[1, -1]).abs().max()
    return bool((alone - values[0, :2]).abs().max() > ROUNDING * change)


def check(vae: Vae) -> None:
    """Raise UsageError with one sentence if the decoder cannot learn from z, or sees tokens that stand behind, which it
    is to predict; or if the encoder reads no texts of different lengths.
    """
    ids = alike_but_the_last(vae.reader.vocabulary).to(vae.device)
    name = type(vae.decoder.model).__name__
    z = torch.randn(1, vae.recipe.latent, generator=torch.Generator().manual_seed(0)).to(vae.device).requires_grad_()
    try:
        with torch.enable_grad():
            logits = vae.decoder(ids, z.expand(2, -1))
            torch.autograd.grad(logits.sum(), z)
        with torch.no_grad():
            alone = vae.decoder(ids[:1, :2], z)
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"{name} cannot be trained to write from z (-o injection={vae.recipe.injection}): {reason}."
        ) from error
    if logits.shape[:2] != ids.shape or looks_ahead(logits) or _apart(alone[0], logits):
        raise UsageError(
            f"{name} sees the tokens that stand behind, which a decoder is to predict; choose a model that sees only "
            "those before, or a T5 (-o seq2seq=…)."
        )
    whole = alike_but_the_last(vae.encoder_reader.vocabulary)[0].tolist()
    with torch.no_grad():
        vae.posterior(Texts.of([whole, whole[:1]]))
