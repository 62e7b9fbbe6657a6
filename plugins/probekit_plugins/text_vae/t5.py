"""T5 as encoder and decoder: a checkpoint, or one of random weights from a few sizes and the subject's vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probekit import UsageError
from probekit_plugins.head import predicted_tokens
from probekit_plugins.text_vae.loading import loaded

if TYPE_CHECKING:
    from probekit import Subject

MADE = "t5:"
SIZES = {"layers": 2, "width": 64, "heads": 4}


def t5(name: str, subject: Subject, seed: int) -> tuple[Any, Any]:
    """A T5ForConditionalGeneration and its tokenizer; None for one that is made, which has the subject's tokens.

    Raises UsageError with one sentence for sizes that do not go together, or if there is none of that name.
    """
    from transformers import T5ForConditionalGeneration

    if name.startswith(MADE) or name == MADE[:-1]:
        return _made(name[len(MADE) :], subject, seed), None
    sizes = "the name or folder of a T5ForConditionalGeneration, or sizes such as 't5:layers=2,width=64,heads=4'"
    return loaded(T5ForConditionalGeneration, name, "T5", sizes)


def _made(text: str, subject: Subject, seed: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = sizes_of(text)
    width, heads = sizes["width"], sizes["heads"]
    config = T5Config(
        vocab_size=predicted_tokens(subject),
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_heads=heads,
        num_layers=sizes["layers"],
        num_decoder_layers=sizes["layers"],
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Any = T5ForConditionalGeneration(config)
    return model


def sizes_of(text: str) -> dict[str, int]:
    """The sizes in `layers=2,width=64,heads=4`, each with a default. Raises UsageError for anything else."""
    sizes = dict(SIZES)
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key.strip() not in sizes or not value.strip().isdecimal() or not 1 <= int(value) <= 65536:
            raise UsageError(
                f"'{part}' is no size of a T5; expected 't5:layers=2,width=64,heads=4', each of them a whole number."
            )
        sizes[key.strip()] = int(value)
    if sizes["width"] % sizes["heads"]:
        raise UsageError(
            f"A T5 of width {sizes['width']} cannot have {sizes['heads']} heads; give a number that divides it."
        )
    return sizes
