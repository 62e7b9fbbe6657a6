"""Models of other kinds than the subject's, with their tokenizers: what cannot be what is asked for is said so."""

from __future__ import annotations

from typing import Any

from probekit import UsageError, out_of_memory


def loaded(kind: Any, name: str, what: str, expected: str) -> tuple[Any, Any]:
    """A model of a class of transformers and its tokenizer, by name or folder. No code that comes with it is run.

    Raises UsageError with one sentence, in which `what` is what was to be loaded and `expected` how it is given, if
    there is none, if weights are missing, which transformers would draw at random (a pooler's are not read), or if it
    has no tokenizer of its own, in place of which transformers makes an empty one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, found = kind.from_pretrained(name, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # the many libraries behind raise what they like
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".:") or type(error).__name__
        raise UsageError(f"The {what} '{name}' cannot be loaded: {reason}. Expected {expected}.") from None
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
    if missing:
        raise UsageError(
            f"The {what} '{name}' lacks weights of a {type(model).__name__}, {missing[0]} the first of {len(missing)}. "
            f"Expected {expected}."
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:  # T5's has a mark of white space
        raise UsageError(f"The {what} '{name}' comes with no tokenizer. Expected {expected}.")
    return model, tokenizer
