"""The result of a run in a few figures: each setting over its seeds, the finding, and what a reader has to know."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit_plugins.corpus import end

if TYPE_CHECKING:
    from probekit import Result, Subject
    from probekit_plugins.corpus import Corpus
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions

Row = dict[str, Any]
# Figures that have a distribution over seeds.
SPREAD = (
    "exact",
    "exact_shuffled",
    "exact_untrained",
    "token_accuracy",
    "token_accuracy_untrained",
    "nll",
    "nll_shuffled",
    "cosine",
    "cosine_untrained",
    "coding_rate",
)


def summarise(result: Result, texts: Mapping[str, Any], source: str) -> None:
    """Add the table `settings`, metrics, those of the texts among them, and the finding."""
    rows = result.tables["trained"]
    for setting in dict.fromkeys(str(row["setting"]) for row in rows):
        same: list[Row] = [dict(row) for row in rows if row["setting"] == setting]
        over = {name: same[0][name] for name in ("setting", "vectors", "repulsion")} | {"seeds": len(same)}
        for name in SPREAD:
            values = [row[name] for row in same]
            over |= {name: median(values), f"{name}_least": min(values), f"{name}_greatest": max(values)}
            result.metrics[f"{setting}/{name}"] = over[name]
        result.tables["settings"].append(over)
    result.metrics |= texts
    result.finding = _finding(result, source)


def percent(row: Row, name: str) -> str:
    """A share over seeds: "63 % (60–66 %)", or the share alone where all show the same."""
    middle, least, greatest = (f"{100 * row[part]:.3g}" for part in (name, f"{name}_least", f"{name}_greatest"))
    # Spaces that do not break.
    return f"{middle}\u00a0%" if least == greatest else f"{middle}\u00a0% ({least}–{greatest}\u00a0%)"


def tokens_of(result: Result) -> str:
    """How long the held-out texts are: `2 to 8 tokens`."""
    least, greatest = (result.metrics[f"tokens_{name}"] for name in ("least", "greatest"))
    return f"{least} to {greatest} tokens" if least != greatest else f"{least} token" + ("" if least == 1 else "s")


def _finding(result: Result, source: str) -> str:
    """What the best setting gives back, beside its controls."""
    rows: list[Row] = [dict(row) for row in result.tables["settings"]]
    best = max(rows, key=lambda row: (row["exact"], row["token_accuracy"]))
    carrier = "one vector" if best["vectors"] == 1 else f"{best['vectors']} vectors"
    apart = "" if best["repulsion"] == "none" else f", with the repulsion {best['repulsion']},"
    text = (
        f"Of {result.metrics['texts_held_out']} held-out texts of {tokens_of(result)} ({source}), "
        f"{percent(best, 'exact')} come back exactly from {carrier} of {result.metrics['width']} numbers{apart} and "
        f"{percent(best, 'token_accuracy')} of their tokens at their place; from another text's, "
        f"{percent(best, 'exact_shuffled')}; before training, {percent(best, 'exact_untrained')}"
    )
    others = [row for row in rows if row is not best]
    if others:
        text += "; " + ", ".join(f"{row['setting']}: {percent(row, 'exact')}" for row in others)
    return text + "."


def notes(subject: Subject, texts: Corpus, options: OneWordAutoencoderOptions) -> list[str]:
    """What a reader has to know beside the figures."""
    found = []
    if texts.source == "what the model writes itself":
        found.append(
            f"There were fewer than ten prompts, so the model wrote {options.pieces} texts itself; they are likelier, "
            "and easier to encode, than others: give texts (-o texts=FILE)."
        )
    if end(subject) is None:
        found.append("The model has no token that ends a text, so decoding stops at each text's own length.")
    if options.training == "lora":
        found.append("LoRA: adapters in the copy that encodes alone; the model as it is decodes.")
    if options.segment is not None and texts.held_out.ids.shape[1] <= options.segment:
        found.append(f"No text is longer than a segment of {options.segment} tokens, so nothing was iterated.")
    elif options.segment is not None and not options.continuation:
        found.append(
            "The next segment was not trained (-o continuation=0), so that its likelihood given the vectors says "
            "little."
        )
    if "coding-rate-as-printed" in options.repulsion:
        found.append(
            "The repulsion 'coding-rate-as-printed' is the source's equation 1 taken at its word: it makes the coding "
            "rate small, and so all vectors alike. It is a control that has to fail."
        )
    if options.seconds is not None:
        found.append("Trainings ended after a number of seconds at the latest: two runs may differ.")
    if options.seeds < 3:
        often = "once" if options.seeds == 1 else "twice"
        found.append(f"Each was trained {often} only; -o seeds=3 or more shows how much figures vary.")
    return found
