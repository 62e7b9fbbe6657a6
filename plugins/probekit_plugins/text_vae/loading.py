"""Models of other kinds than the subject's, with their tokenizers: what cannot be what is asked for is said so."""

from __future__ import annotations

from typing import Any

from probekit import ModelSpec, UsageError, out_of_memory, reading_model


def loaded(kind: Any, name: str, what: str, expected: str) -> tuple[Any, Any]:
    """A model of a class of transformers and its tokenizer, by name or folder. No code that comes with it is run and
    no pickle is read; a folder is read without the network.

    Raises UsageError with one sentence, in which `what` is what was to be loaded and `expected` how it is given, if
    there is none, if weights are missing, which transformers would draw at random (a pooler's are not read), or if it
    has no tokenizer of its own, in place of which transformers makes an empty one.
    """
    from transformers import AutoTokenizer

    try:
        with reading_model(name, ModelSpec(name=name)) as given:
            tokenizer: Any = AutoTokenizer.from_pretrained(name, **given.files)
            model, found = kind.from_pretrained(
                name, config=given.config_of(kind), output_loading_info=True, **given.weights()
            )
    except Exception as error:  # the many libraries behind raise what they like
        if out_of_memory(error):
            raise
        if "--allow-pickle" in str(error):  # which is said of the run's own model
            error = UsageError("its weights are pickled, and pickle can run code when it is read")
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
