"""From what was recovered under each condition to figures: a row for each, metrics and the finding. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from probekit_plugins.exact_inverter.figures import figures, rows_of
from probekit_plugins.leakage_audit.conditions import NONE, Row, passes, prefix

if TYPE_CHECKING:
    from probekit import Result, TokenSequence

# What tells a condition from the others, as labels and as columns.
CONDITION = ("site", "through", "precision", "noise")
METRICS = ("token_accuracy", "verified_share", "false_positives", "candidates_per_token")


def figured(result: Result) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy, and its token sequences."""
    found = replace(result, metrics={}, tables={"conditions": []})
    recovered: dict[tuple[object, ...], list[TokenSequence]] = {}
    for sequence in result.sequences["recovered"]:
        recovered.setdefault(tuple(sequence.labels[name] for name in CONDITION), []).append(sequence)
    for sequences in recovered.values():
        condition: Row = {name: sequences[0].labels[name] for name in CONDITION}
        places, prompts = rows_of(result, prefix(condition), sequences)
        row = condition | figures(prompts, places)
        found.tables["conditions"].append(row)
        found.metrics |= {f"{prefix(condition)}/{name}": row[name] for name in METRICS}
    found.finding = _finding(found.tables["conditions"], len(result.sequences["prompt"]))
    return found


def _finding(rows: Sequence[Row], prompts: int) -> str:
    """What leaks from the deepest site as it is, and what the noise or the autoencoders that were tried do about it."""
    of_site = [row for row in rows if row["site"] == rows[-1]["site"]]
    deepest = [row for row in of_site if passes(row) == NONE]
    plain, worst = min(deepest, key=lambda row: row["noise"]), max(deepest, key=lambda row: row["noise"])
    through = [
        f"{row['token_accuracy']:.0%} through {passes(row)}"
        for row in of_site
        if passes(row) != NONE and (row["precision"], row["noise"]) == (plain["precision"], plain["noise"])
    ]

    def leaked(row: Row) -> str:
        rounded = "" if row["precision"] == "none" else f" rounded to {row['precision']}"
        noisy = f" with noise of σ = {row['noise']:g}" if row["noise"] else ""
        return f"{row['token_accuracy']:.0%} of the tokens come back from {row['site']}{rounded}{noisy}"

    many = "the prompt" if prompts == 1 else f"{prompts} prompts"
    cost = f"{plain['verified_share']:.0%} with proof, at {plain['candidates_per_token']:.3g} candidates a token"
    told = [f"Of {many}, {leaked(plain)}, {cost}", ", ".join(through), "" if plain is worst else leaked(worst)]
    return "; ".join(filter(None, told)) + "."
