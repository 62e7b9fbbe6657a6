"""What a run measures, as tensors and token sequences of its result; its figures follow from these alone.

What is only told, of a code or of a text that is measured, is in the labels of sequences without tokens: nobody wrote
them, so that they are none of the texts of this run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit import Result, TokenSequence

if TYPE_CHECKING:
    import torch

    from probekit import Prompt, Subject
    from probekit_plugins.control_codes.generation import Generated
    from probekit_plugins.control_codes.known import Known
    from probekit_plugins.control_codes.prefixes import Prefix

# Tokens of a text that a report shows.
BEGINNING = 24


def of_prompts(model: str) -> str:
    """The name of the tensor of a model's NLL of the prompts, `[prompts, 1 + codes]`: without a code, under each."""
    return f"nll_of_prompts/{model}"


def of_texts(model: str, seed: int) -> str:
    """That of the NLL of the texts whose code is known, `[texts, codes that have texts]`."""
    return f"nll/{model}, seed {seed}"


def of_losses(model: str, seed: int) -> str:
    """That of the loss of each step of a training, `[steps]`."""
    return f"losses/{model}, seed {seed}"


def keep_codes(result: Result, subject: Subject, prefixes: Sequence[Prefix], texts: Known | None) -> None:
    """What stands before a text under each code; and the texts whose code is known, by their beginnings."""
    counts = {} if texts is None else texts.counts
    result.sequences["codes"] = [
        TokenSequence(
            [],
            [],
            {
                "code": prefix.name,
                "prefix": "".join(subject.tokens(prefix.ids[-prefix.own :])),
                "tokens": prefix.own,
                "description": "" if prefix.code is None else prefix.code.description,
                "trained_on": counts.get(prefix.name, (0, 0))[0],
            },
        )
        for prefix in prefixes
    ]
    if texts is not None:
        names = [prefix.name for prefix in texts.prefixes]
        result.sequences["texts"] = [
            TokenSequence(
                [], [], {"known": names[code], "tokens": len(ids), "beginning": subject.text(ids[:BEGINNING])}
            )
            for code, ids in texts.measured
        ]


def keep_prompts(result: Result, subject: Subject, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> None:
    """The prompts, without what begins a text."""
    result.sequences["prompt"] = [
        TokenSequence(list(own), subject.tokens(list(own)), {"prompt": number})
        for number, (_, own) in enumerate(zip(prompts, ids, strict=True))
    ]


def keep_generated(result: Result, subject: Subject, model: str, generated: Generated) -> None:
    """Every text that was written."""
    result.sequences["generated"] = [
        TokenSequence(
            ids,
            subject.tokens(ids),
            {"model": model, "form": form, "code": code, "prompt": prompt, "sample": sample},
        )
        for (form, code, prompt), rows in generated.items()
        for sample, ids in enumerate(rows.tolist())
    ]


def keep_losses(result: Result, model: str, seed: int, losses: torch.Tensor) -> None:
    """The loss of each step."""
    result.tensors[of_losses(model, seed)] = losses.cpu()
