"""What a run found, as tables, token sequences and tensors of its result."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins.control_codes.attribution import attribute, by_code, chance, confusion, score
from probekit_plugins.control_codes.codes import NONE
from probekit_plugins.repeats import seq_rep

if TYPE_CHECKING:
    from probekit import Prompt, Subject
    from probekit_plugins.control_codes.generation import Generated
    from probekit_plugins.control_codes.known import Known
    from probekit_plugins.control_codes.prefixes import Prefix
    from probekit_plugins.trainer import Training

# `exp` of more is no float.
LARGEST = 700.0

Nll = Sequence[Sequence[float]]
Row = dict[str, str | int | float | bool | None]


def store_codes(result: Result, subject: Subject, prefixes: Sequence[Prefix], texts: Known | None) -> None:
    """A row for each code: what stands before a text, and how many texts are known to be its."""
    counts = {} if texts is None else texts.counts
    result.tables["codes"] = [
        {
            "code": prefix.name,
            "prefix": "".join(subject.tokens(prefix.ids[-prefix.own :])),
            "tokens": prefix.own,
            "description": "" if prefix.code is None else prefix.code.description,
            "trained_on": counts.get(prefix.name, (0, 0))[0],
            "measured": counts.get(prefix.name, (0, 0))[1],
        }
        for prefix in prefixes
    ]


def store_prompts(result: Result, subject: Subject, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> None:
    """The prompts, without what begins a text."""
    result.sequences["prompt"] = [
        TokenSequence(list(own), subject.tokens(list(own)), {"prompt": number})
        for number, (_, own) in enumerate(zip(prompts, ids, strict=True))
    ]


def store_likelihoods(result: Result, model: str, codes: Sequence[str], nll: Nll) -> None:
    """Every prompt without a code, and under each; and the code that it is attributed to."""
    for prompt, (plain, *under) in enumerate(nll):
        for code, value in zip([NONE, *codes], [plain, *under], strict=True):
            row: Row = {"model": model, "prompt": prompt, "code": code, "nll": value, "ppl": _ppl(value)}
            result.tables.setdefault("likelihood", []).append({**row, "less_than_without": plain - value})
        found = attribute(under)
        result.tables.setdefault("attribution", []).append(
            {
                "model": model,
                "prompt": prompt,
                "code": None if found.code is None else codes[found.code],
                "second": None if found.second is None else codes[found.second],
                "nll": min(under),
                "ppl": _ppl(min(under)),
                "margin": found.margin,
                "nll_without": plain,
            }
        )


def store_attribution(result: Result, subject: Subject, model: str, seed: int, texts: Known, nll: Nll) -> None:
    """How well one model tells the texts of the codes apart, and each text's own figures for the first seed."""
    names = [prefix.name for prefix in texts.prefixes]
    found = score(texts.codes, nll, [len(ids) for ids in texts.texts])
    label: Row = {"model": model, "seed": seed}
    result.tables.setdefault("accuracy", []).append({**label, **vars(found), "chance": chance(texts.codes)})
    attributed = [attribute(row) for row in nll]
    counts = confusion(texts.codes, attributed, len(names))
    means = by_code(texts.codes, nll, len(names))
    for own, name in enumerate(names):
        for code, other in enumerate([*names, None]):
            row: Row = {**label, "known": name, "attributed": other, "texts": counts[own][code]}
            result.tables.setdefault("confusion", []).append(row)
        for code, other in enumerate(names):
            row = {**label, "known": name, "code": other, "nll": means[own][code]}
            result.tables.setdefault("by_code", []).append(row)
    result.tensors[f"nll/{model}, seed {seed}"] = torch.tensor(nll, dtype=torch.float64)
    if seed == 0:
        for number, (own, each, row_nll) in enumerate(zip(texts.codes, attributed, nll, strict=True)):
            result.tables.setdefault("texts", []).append(
                {
                    "model": model,
                    "text": number,
                    "known": names[own],
                    "attributed": None if each.code is None else names[each.code],
                    "margin": each.margin,
                    "nll_own": row_nll[own],
                    "nll_others": (sum(row_nll) - row_nll[own]) / (len(names) - 1),
                    "tokens": len(texts.texts[number]),
                    "beginning": subject.text(texts.texts[number][:24]),
                }
            )


def store_training(result: Result, model: str, seed: int, training: Training) -> None:
    """The loss over the steps."""
    result.tables.setdefault("losses", []).extend(
        {"model": model, "seed": seed, "step": step, "loss": loss} for step, loss in training.curve()
    )


def store_generated(result: Result, subject: Subject, model: str, generated: Generated) -> None:
    """Every text, and how much of it repeats, by form of the penalty."""
    shares: dict[str, list[tuple[float | None, float | None]]] = {}
    for (form, code, prompt), rows in generated.items():
        for sample, ids in enumerate(rows.tolist()):
            labels: Row = {"model": model, "form": form, "code": code, "prompt": prompt, "sample": sample}
            result.sequences.setdefault("generated", []).append(TokenSequence(ids, subject.tokens(ids), labels))
            shares.setdefault(form, []).append((seq_rep(ids, 1), seq_rep(ids, 4)))
    result.tables["repetition"] = [
        {
            "model": model,
            "form": form,
            "texts": len(found),
            **_spread("tokens_again", [one for one, _ in found]),
            **_spread("4grams_again", [four for _, four in found]),
            "as_corrected": _same(generated, form),
        }
        for form, found in shares.items()
    ]


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """None of texts that are too short for the figure."""
    there = [value for value in values if value is not None]
    if not there:
        return dict.fromkeys((name, f"{name}_least", f"{name}_greatest"))
    return {name: fmean(there), f"{name}_least": min(there), f"{name}_greatest": max(there)}


def _same(generated: Generated, form: str) -> int | None:
    """How many texts are the very same in the corrected form; None if that was not written, or is this one."""
    pairs = [
        (rows, generated["corrected", code, prompt])
        for (own, code, prompt), rows in generated.items()
        if own == form != "corrected" and ("corrected", code, prompt) in generated
    ]
    return sum(int((one == two).all(1).sum()) for one, two in pairs) if pairs else None


def _ppl(nll: float) -> float | None:
    return exp(nll) if nll < LARGEST else None
