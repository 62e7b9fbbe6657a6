"""The tables of a result, from the tensors and the token sequences in which it keeps what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

from probekit import Result
from probekit_plugins.control_codes.attribution import (
    BEFORE,
    SHUFFLED,
    TUNED,
    attribute,
    by_code,
    chance,
    confusion,
    score,
)
from probekit_plugins.control_codes.codes import NONE
from probekit_plugins.control_codes.measured import of_losses, of_prompts, of_texts
from probekit_plugins.losses import curve
from probekit_plugins.repeats import seq_rep

if TYPE_CHECKING:
    from probekit import TokenSequence
    from probekit_plugins.control_codes import ControlCodesOptions

# `exp` of more is no float.
LARGEST = 700.0

Row = dict[str, str | int | float | bool | None]


def fill(result: Result, options: ControlCodesOptions) -> None:
    """Every table that something was measured for."""
    texts = result.sequences.get("texts", [])
    codes = [str(each.labels["code"]) for each in result.sequences["codes"]]
    for model, seed in _models(options):
        if seed == 0 and of_prompts(model) in result.tensors:
            _add_prompts(result, model, codes, result.tensors[of_prompts(model)].tolist())
        if of_texts(model, seed) in result.tensors:
            _add_texts(result, model, seed, texts, result.tensors[of_texts(model, seed)].tolist())
        if of_losses(model, seed) in result.tensors:
            result.tables.setdefault("losses", []).extend(
                {"model": model, "seed": seed, "step": step, "loss": loss}
                for step, loss in curve(result.tensors[of_losses(model, seed)])
            )
    if result.sequences.get("generated"):
        result.tables["repetition"] = _repetition(result.sequences["generated"])
    result.tables["codes"] = _codes(result.sequences["codes"], texts)


def _models(options: ControlCodesOptions) -> Iterator[tuple[str, int]]:
    """The model as it is, and each fine-tuning with its seed."""
    yield BEFORE, 0
    for seed in range(options.seeds if options.steps else 0):
        yield TUNED, seed
        if options.control:
            yield SHUFFLED, seed


def _codes(codes: Sequence[TokenSequence], texts: Sequence[TokenSequence]) -> list[Row]:
    """A row for each code: what stands before a text, and how many texts are known to be its."""
    columns = ("code", "prefix", "tokens", "description", "trained_on")
    return [
        {column: each.labels[column] for column in columns}
        | {"measured": sum(text.labels["known"] == each.labels["code"] for text in texts)}
        for each in codes
    ]


def _add_prompts(result: Result, model: str, codes: Sequence[str], nll: Sequence[Sequence[float]]) -> None:
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


def _add_texts(
    result: Result, model: str, seed: int, texts: Sequence[TokenSequence], nll: Sequence[Sequence[float]]
) -> None:
    """How well one model tells the texts of the codes apart, and each text's own figures for the first seed."""
    of_each = [str(text.labels["known"]) for text in texts]
    names = list(dict.fromkeys(of_each))
    known = [names.index(name) for name in of_each]
    lengths = [int(text.labels["tokens"] or 0) for text in texts]
    label: Row = {"model": model, "seed": seed}
    accuracy: dict[str, Any] = vars(score(known, nll, lengths))
    result.tables.setdefault("accuracy", []).append({**label, **accuracy, "chance": chance(known)})
    attributed = [attribute(row) for row in nll]
    counts = confusion(known, attributed, len(names))
    means = by_code(known, nll, len(names))
    for own, name in enumerate(names):
        for code, other in enumerate([*names, None]):
            row: Row = {**label, "known": name, "attributed": other, "texts": counts[own][code]}
            result.tables.setdefault("confusion", []).append(row)
        for code, other in enumerate(names):
            row = {**label, "known": name, "code": other, "nll": means[own][code]}
            result.tables.setdefault("by_code", []).append(row)
    if seed:
        return
    for number, (own, each, row_nll) in enumerate(zip(known, attributed, nll, strict=True)):
        result.tables.setdefault("texts", []).append(
            {
                "model": model,
                "text": number,
                "known": names[own],
                "attributed": None if each.code is None else names[each.code],
                "margin": each.margin,
                "nll_own": row_nll[own],
                "nll_others": (sum(row_nll) - row_nll[own]) / (len(names) - 1),
                "tokens": lengths[number],
                "beginning": texts[number].labels["beginning"],
            }
        )


def _repetition(generated: Sequence[TokenSequence]) -> list[Row]:
    """How much of what was written repeats, by form of the penalty."""
    forms: dict[str, list[TokenSequence]] = {}
    for each in generated:
        forms.setdefault(str(each.labels["form"]), []).append(each)
    return [
        {
            "model": texts[0].labels["model"],
            "form": form,
            "texts": len(texts),
            **_spread("tokens_again", [seq_rep(each.ids, 1) for each in texts]),
            **_spread("4grams_again", [seq_rep(each.ids, 4) for each in texts]),
            "as_corrected": None if form == "corrected" else _same(texts, forms.get("corrected", [])),
        }
        for form, texts in forms.items()
    ]


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """None of texts that are too short for the figure."""
    there = [value for value in values if value is not None]
    if not there:
        return dict.fromkeys((name, f"{name}_least", f"{name}_greatest"))
    return {name: fmean(there), f"{name}_least": min(there), f"{name}_greatest": max(there)}


def _same(texts: Sequence[TokenSequence], corrected: Sequence[TokenSequence]) -> int | None:
    """How many texts are the very same in the corrected form; None if that was not written."""
    places = ("code", "prompt", "sample")
    other = {tuple(each.labels[place] for place in places): each.ids for each in corrected}
    found = [each.ids == other.get(tuple(each.labels[place] for place in places)) for each in texts]
    return sum(found) if corrected else None


def _ppl(nll: float) -> float | None:
    return exp(nll) if nll < LARGEST else None
