"""Which tokens of prompts survived an autoencoder, of what was recovered of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from probekit import TokenSequence

# The name of the row of the exact activations.
NONE = "none"

Row = dict[str, str | int | float | bool | None]


def shares(
    prompts: Sequence[TokenSequence],
    recovered: Sequence[TokenSequence],
    aware: Sequence[TokenSequence],
    skip_first: int,
) -> list[Row]:
    """A row for the exact activations ("none") and for each autoencoder, of what `survivors` finds of prompts at a
    site: the share of the tokens that is right from `skip_first` on, and that of the prompts in which all are.
    """
    wanted = {each.labels["prompt"]: each.ids for each in prompts}
    rows: dict[object, Row] = {}
    for whose, sequences in (("", recovered), ("_aware", aware)):
        for name in dict.fromkeys(each.labels["autoencoder"] for each in sequences):
            own = [each for each in sequences if each.labels["autoencoder"] == name]
            right = [_right(each, wanted[each.labels["prompt"]])[skip_first:] for each in own]
            every = [one for each in right for one in each]
            row = rows.setdefault(name, {"site": own[0].labels["site"], "autoencoder": name, "tokens": len(every)})
            row[f"token_accuracy{whose}"] = fmean(every)
            row[f"exact_prompts{whose}"] = fmean(map(all, right))
    return list(rows.values())


def _right(found: TokenSequence, prompt: Sequence[int]) -> list[bool]:
    """Which of its tokens are the prompt's, and told from others where that is said."""
    told = str(found.labels.get("told", "1" * len(prompt)))
    return [one == other and each == "1" for one, other, each in zip(found.ids, prompt, told, strict=True)]
