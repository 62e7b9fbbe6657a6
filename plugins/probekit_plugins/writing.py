"""Text that a model writes itself, by sampling from its own distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probekit_plugins.texts import beginning

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.batches import Batches

# Said outright, because transformers fills what is left open from the model's own generation settings.
PLAIN: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
}
SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def can_generate(subject: Subject) -> bool:
    """Whether the model continues text at all: a plain network does not, and one of codebooks continues sound."""
    return subject.has_logits and bool(getattr(subject.model, "can_generate", lambda: False)())


def written_pieces(
    subject: Subject, prompt: Prompt, count: int, length: int, rows: int, context: Context, label: str, batches: Batches
) -> torch.Tensor:
    """Pieces that the model writes itself at temperature 1, after what begins a text, or the prompt's first token.

    `[count, length]`, without what begins them, `rows` at a time at most, each batch a stage of the run. The token
    that would end a text is never generated.
    """
    start = beginning(subject)
    own = [] if start else prompt.input_ids[0, :1].tolist()
    new = length - len(own)
    ids = torch.tensor([start + own])
    with context.progress(label, count) as progress:

        def write(chosen: slice) -> torch.Tensor:
            size = chosen.stop - chosen.start
            seed = int(torch.randint(2**62, (1,), generator=context.generator(f"own text/{chosen.start}")))
            settings = {**PLAIN, **SAMPLING, "max_new_tokens": new, "min_new_tokens": new}
            key = f"own text/{chosen.start} to {chosen.stop}"
            found = context.stage(key, lambda: {"ids": subject.generate(ids.expand(size, -1), seed, **settings)})
            progress.step(size)
            return found["ids"][:, len(start) :]

        return batches.joined(count, write, label, rows)
