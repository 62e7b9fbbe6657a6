"""From what was found and how far it was to figures: a row for each position and prompt, metrics and the finding. No
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import floor
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from probekit_plugins.exact_inverter.verdict import Status, Verdict, noise_survived, settle

if TYPE_CHECKING:
    from probekit import Result, TokenSequence

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]

# In place of a token or a distance that there is none of.
NONE = -1


def figured(result: Result) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy, and its token sequences."""
    found = replace(result, metrics={}, tables={"positions": [], "prompts": []})
    recovered = result.sequences["recovered"]
    sites = list(dict.fromkeys(str(sequence.labels["site"]) for sequence in recovered))
    for site in sites:
        places, prompts = rows_of(result, site, [each for each in recovered if each.labels["site"] == site])
        found.tables["positions"] += places
        found.tables["prompts"] += prompts
        found.metrics[f"{site}/arithmetic_error"] = result.tensors[f"{site}/arithmetic_error"].item()
        found.metrics |= {f"{site}/{name}": value for name, value in figures(prompts, places).items()}
    found.finding = _finding(found, sites)
    return found


def rows_of(result: Result, prefix: str, recovered: Sequence[TokenSequence]) -> tuple[list[Row], list[Row]]:
    """A row for each position and for each prompt that was recovered, from the tensors of that prefix: positions stand
    there one prompt after the other.
    """
    truths = {prompt.labels["prompt"]: prompt.ids for prompt in result.sequences.get("prompt", [])}
    texts = {
        token: text
        for named in result.sequences.get("vocabulary", [])
        for token, text in zip(named.ids, named.tokens, strict=True)
    }
    names = ("known", "distance", "bound", "rival", "rival_distance", "ties", "alone", "tried", "by_gradient")
    values: dict[str, list[Any]] = {
        name: result.tensors[f"{prefix}/{name}"].tolist() for name in (*names, "noisy", "computed")
    }
    width = int(result.tensors[f"{prefix}/width"].item())
    places: list[Row] = []
    prompts: list[Row] = []
    first = 0
    for number, sequence in enumerate(recovered):
        here = slice(first, first + len(sequence.ids))
        first = here.stop
        of_prompt = {name: values[name][here] for name in names}
        labels = {key: value for key, value in sequence.labels.items() if key != "reasons"}
        truth = truths.get(sequence.labels["prompt"])
        right = _right(sequence.ids, truth)
        verdicts = _verdicts(of_prompt)
        settle(verdicts, values["noisy"][number])
        places += [
            {
                **labels,
                "position": position,
                "known": of_prompt["known"][position],
                "recovered": sequence.ids[position],
                "text": sequence.tokens[position],
                "right": right[position],
                "status": verdict.status.value,
                "distance": verdict.distance,
                "bound": verdict.bound,
                "rival": verdict.rival,
                "rival_text": None if verdict.rival is None else texts.get(verdict.rival),
                "rival_distance": verdict.rival_distance,
                "ties": verdict.ties,
                "noise_survived": noise_survived(verdict, width),
                "tried": of_prompt["tried"][position],
                "by_gradient": of_prompt["by_gradient"][position],
            }
            for position, verdict in enumerate(verdicts)
        ]
        verified = [verdict.status == Status.VERIFIED for verdict in verdicts]
        prompts.append(
            {
                **labels,
                "tokens": len(verdicts),
                "exact": None if truth is None else all(right),
                "token_accuracy": None if truth is None else mean(map(float, right)),  # type: ignore[arg-type]
                "verified": sum(verified),
                "tied": sum(verdict.status == Status.TIED for verdict in verdicts),
                "false_positives": None
                if truth is None
                else sum(each and not hit for each, hit in zip(verified, right, strict=True)),
                "candidates_per_token": mean(of_prompt["tried"]),
                "computed": values["computed"][number],
                "reasons": sequence.labels["reasons"],
            }
        )
    return places, prompts


def _right(ids: Sequence[int], truth: Sequence[int] | None) -> list[bool | None]:
    """Which tokens are the prompt's, where those are known."""
    if truth is None:
        return [None] * len(ids)
    return [one == other for one, other in zip(ids, truth, strict=True)]


def _verdicts(values: dict[str, list[Any]]) -> list[Verdict]:
    """The verdicts of a prompt as they were packed by `columns`, without their status."""

    def there(name: str) -> list[Any]:
        return [None if value == NONE else value for value in values[name]]

    rows = zip(
        *map(there, ("distance", "bound", "rival", "rival_distance")), values["ties"], values["alone"], strict=True
    )
    return [Verdict(Status.UNDETERMINED, *row) for row in rows]


def columns(verdicts: Sequence[Verdict]) -> dict[str, list[Any]]:
    """What verdicts follow from, by name: a value for each position, NONE where there is none."""
    found: dict[str, list[Any]] = {
        name: [NONE if (value := getattr(verdict, name)) is None else value for verdict in verdicts]
        for name in ("distance", "bound", "rival", "rival_distance")
    }
    return {
        **found,
        "ties": [verdict.ties for verdict in verdicts],
        "alone": [verdict.alone for verdict in verdicts],
    }


def figures(prompts: Sequence[Row], positions: Sequence[Row]) -> Row:
    """Figures over prompts and positions. Where the right tokens are not known, those that need them are None."""

    def known(name: str, rows: Sequence[Row]) -> list[float]:
        return [float(row[name]) for row in rows if row[name] is not None]  # type: ignore[arg-type]

    def over(reduce: Callable[[list[float]], Any], name: str, rows: Sequence[Row]) -> Scalar:
        found = known(name, rows)
        return float(reduce(found)) if found else None

    tokens = sum(known("tokens", prompts))
    return {
        "exact_rate": over(mean, "exact", prompts),
        "token_accuracy": over(mean, "right", positions),
        "verified_share": sum(known("verified", prompts)) / tokens,
        "tied_share": sum(known("tied", prompts)) / tokens,
        "false_positives": over(sum, "false_positives", prompts),
        "candidates_per_token": over(mean, "tried", positions),
        "candidates_most": over(max, "tried", positions),
        "distance_most": over(max, "distance", [row for row in positions if row["status"] == Status.VERIFIED]),
        "margin_least": over(min, "rival_distance", positions),
        "margin_median": over(median, "rival_distance", positions),
        "noise_survived_least": over(min, "noise_survived", positions),
    }


def _share(value: float) -> str:
    """In per cent, and 100 % only if it is all."""
    return f"{floor(1000 * value) / 10:g}%"


def _finding(result: Result, sites: Sequence[str]) -> str:
    rows = result.tables["prompts"]
    count = len(rows) // len(sites)
    where = sites[0] if len(sites) == 1 else f"{len(sites)} sites, {sites[0]} to {sites[-1]}"
    verified = sum(int(row["verified"] or 0) for row in rows) / sum(int(row["tokens"] or 0) for row in rows)
    many = "the prompt" if count == 1 else f"the {count} prompts"
    tried = mean(float(result.metrics[f"{site}/candidates_per_token"] or 0) for site in sites)
    cost = "1 candidate" if tried == 1 else f"{tried:.3g} candidates"
    if any(row["exact"] is None for row in rows):
        return (
            f"{_share(verified)} of the tokens of {many} are recovered and verified ({where}), with {cost} tried for "
            "each."
        )
    exact = mean(float(bool(row["exact"])) for row in rows)
    wrong = sum(int(row["false_positives"] or 0) for row in rows)
    back = (
        f"{_share(exact)} of the inversions give the whole prompt back exactly"
        if exact < 1
        else f"{many[0].upper()}{many[1:]} came back exactly"
    )
    return (
        f"{back} ({where}); {_share(verified)} of all tokens are verified from the activations alone, "
        f"{wrong or 'none'} of them wrongly, with {cost} tried for each."
    )
