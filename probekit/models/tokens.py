"""Tokens and text: what a tokenizer says, with each token's own text kept exact. Functions of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probekit.errors import ModelError, out_of_memory, quoted

REPLACEMENT = "\ufffd"
# A longer token is no word of any language, and a page says a token many times.
MOST_CHARACTERS = 16_384


def encode_text(tokenizer: Any, text: str, special_tokens: bool) -> list[int]:
    """Token ids of a text, without the warning that transformers gives for long ones.

    Raises ModelError with one sentence if the tokenizer cannot read it.
    """
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, Exception) and out_of_memory(error):
            raise
        raise ModelError(
            f"The tokenizer of this model cannot read the prompt {quoted(text)}: "
            f"{' '.join(str(error).split()) or type(error).__name__}."
        ) from None
    return ids


def decode_text(tokenizer: Any | None, ids: Sequence[int]) -> str:
    """The text of a sequence, special tokens included; `<7><9>` without a tokenizer."""
    if tokenizer is None:
        return "".join(f"<{index}>" for index in ids)
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def token_strings(tokenizer: Any | None, ids: Sequence[int]) -> list[str]:
    """Each token's own text, with its leading space; a token that is only part of a character shows its raw piece."""
    if tokenizer is None:
        return [f"<{index}>" for index in ids]
    known = {index: _shortened(_token_string(tokenizer, index)) for index in set(ids)}
    return [known[index] for index in ids]


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}… ({len(text):,} characters)"


def _token_string(tokenizer: Any, index: int) -> str:
    try:  # ids may have gaps, so the tokenizer's length says nothing; some raise for an id that they lack
        piece = tokenizer.convert_ids_to_tokens(index)
    except (LookupError, OverflowError, TypeError, ValueError):
        piece = None
    if piece is None:
        return f"<{index}>"  # an embedding row that no token uses
    if "▁" in piece:  # SentencePiece: decoding a token alone would drop its leading space
        return str(piece).replace("▁", " ")
    text = str(tokenizer.decode([index], clean_up_tokenization_spaces=False))
    return str(piece) if REPLACEMENT in text or not text else text
