"""The finding in one sentence, the metrics, and what a reader has to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from probekit_plugins.control_codes.attribution import BEFORE, SHUFFLED, TUNED
from probekit_plugins.control_codes.tables import fill

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.control_codes import ControlCodesOptions
    from probekit_plugins.control_codes.prefixes import Prefix

# The figures of an accuracy row that become metrics, for each model.
SCORES = {
    "accuracy": "accuracy",
    "probability": "probability",
    "own": "nll_own",
    "other": "nll_others",
    "gap": "gap",
    "margin": "margin",
}
PREFIXES = {BEFORE: "before", TUNED: "tuned", SHUFFLED: "shuffled"}
# A prompt of fewer tokens says little of itself.
FEW_TOKENS = 16


def summarise(result: Result, options: ControlCodesOptions) -> None:
    """Fill the tables from what was measured, and the metrics and the finding from these."""
    fill(result, options)
    used = result.tables["codes"]
    rows = result.tables["attribution"]
    first = [row for row in rows if row["model"] == BEFORE]
    result.metrics |= {"codes": len(used), "prompts": len(first)}
    result.metrics |= {
        "nll_lowest": fmean(_number(row["nll"]) for row in first),
        "nll_without_code": fmean(_number(row["nll_without"]) for row in first),
    }
    if len(used) > 1:
        result.metrics["margin_of_prompts"] = median(_number(row["margin"]) for row in first)
    for model, prefix in PREFIXES.items():
        scores = [row for row in result.tables.get("accuracy", []) if row["model"] == model]
        if scores:
            result.metrics |= {"texts": scores[0]["texts"], "chance": scores[0]["chance"]}
        for column, name in SCORES.items() if scores else ():
            values = [_number(row[column]) for row in scores]
            result.metrics[f"{prefix}/{name}"] = median(values)
            if len(values) > 1:
                result.metrics |= {f"{prefix}/{name}_least": min(values), f"{prefix}/{name}_greatest": max(values)}
    for row in result.tables.get("repetition", []):
        for name in ("tokens_again", "4grams_again"):
            if row[name] is not None:
                result.metrics[f"{row['form']}/{name}"] = row[name]
    result.finding = _finding(result, options)


def _finding(result: Result, options: ControlCodesOptions) -> str:
    found = result.metrics
    if "chance" not in found:
        return _of_prompts(result)
    texts, trained = found["texts"], len({row["known"] for row in result.tables["by_code"]})
    if f"{PREFIXES[TUNED]}/accuracy" not in found:
        return (
            f"Of {texts} texts {_number(found['before/accuracy']):.0%} are attributed to their own code "
            f"({_number(found['chance']):.0%} is chance): a token has {found['before/nll_own']:.2f} nats under its "
            f"text's own code and {found['before/nll_others']:.2f} under others."
        )
    control = ""
    if options.control:
        control = f", {_over_seeds(found, 'shuffled/probability', '.2f')} with the codes shuffled"
    own, other = (_over_seeds(found, f"tuned/{name}", ".2f") for name in ("nll_own", "nll_others"))
    return (
        f"After {_steps(result)} steps of fine-tuning under their codes, {_over_seeds(found, 'tuned/accuracy', '.0%')} "
        f"of {texts} held-out texts are attributed to their own code. It gets a probability of "
        f"{_over_seeds(found, 'tuned/probability', '.2f')} on average ({_number(found['before/probability']):.2f} "
        f"before{control}, {1 / trained:.2f} by chance), and a token has {own} nats under its text's own code, {other} "
        "under others."
    )


def _of_prompts(result: Result) -> str:
    rows = [row for row in result.tables["attribution"] if row["model"] == BEFORE]
    codes = len(result.tables["codes"])
    row: dict[str, Any] = rows[0]
    if codes == 1:
        only = result.tables["codes"][0]["code"]
        return (
            f"Under the code '{only}' a token of the {'prompt' if len(rows) == 1 else 'prompts'} has "
            f"{result.metrics['nll_lowest']:.2f} nats, without it {result.metrics['nll_without_code']:.2f}."
        )
    if len(rows) == 1:
        if row["code"] is None:
            return f"Several of {codes} codes make the prompt equally likely, at {row['nll']:.2f} nats a token."
        return (
            f"Of {codes} codes '{row['code']}' makes the prompt the likeliest, at {row['nll']:.2f} nats a token, "
            f"{_number(row['margin']):.3f} less than '{row['second']}'"
            + ("; without a code it is" if row["nll_without"] > row["nll"] else ", but without a code it is only")
            + f" {row['nll_without']:.2f}."
        )
    counts = Counter(str(row["code"]) for row in rows if row["code"] is not None)
    if not counts:
        return f"Of {codes} codes several make each of the {len(rows)} prompts equally likely."
    [(name, count)] = counts.most_common(1)
    ahead = [other for other, times in counts.items() if times == count and other != name]
    shared = f", and so {'does' if len(ahead) == 1 else 'do'} {', '.join(ahead)}" if ahead else ""
    return (
        f"Of {codes} codes '{name}' makes the most prompts the likeliest, {count} of {len(rows)}{shared}; the "
        f"likeliest code is ahead of the second by {result.metrics['margin_of_prompts']:.3f} nats a token (median over "
        "prompts)."
    )


def notes(
    result: Result, left_out: Sequence[Prefix], ambiguous: int, options: ControlCodesOptions, writes: bool
) -> list[str]:
    """What a reader has to know beside the figures; `ambiguous` texts stand under several codes."""
    found = []
    if left_out:
        names = ", ".join(prefix.name for prefix in left_out)
        found.append(f"The context has no room for these codes beside the prompt, so they were left out: {names}.")
    if ambiguous:
        found.append(
            f"{ambiguous} of the {result.metrics['texts']} texts that are measured are the same under several codes, so"
            " that at most one of their attributions can be right."
        )
    if not options.steps:
        found.append(
            "The model was not fine-tuned here: unless it was trained with these codes, a code is to it only some "
            "words before the text, and attribution says which words make the text likelier."
        )
    trained = [row["code"] for row in result.tables["codes"] if row["trained_on"]]
    others = len(result.tables["codes"]) - len(trained)
    if trained and others:
        found.append(
            f"Fine-tuned were {', '.join(map(str, trained))}; the other {others} codes had no texts, so the fine-tuned "
            "model's figures and texts under them say little."
        )
    shortest = min(len(sequence.ids) for sequence in result.sequences["prompt"])
    if shortest < FEW_TOKENS and "chance" not in result.metrics:
        tokens = f"{shortest} {'token' if shortest == 1 else 'tokens'}"
        found.append(f"A prompt has {tokens} only: which code it is attributed to may hang on one of them.")
    if options.penalty_form and not writes:
        found.append("This model does not generate text, so nothing was written under the codes.")
    for row in result.tables.get("repetition", []):
        if row["form"] == "literal" and row["as_corrected"] == row["texts"]:
            found.append(
                "The literal penalty wrote the very texts of the corrected one: the two differ where a token that was "
                "generated before has a negative logit, and no such token could win."
            )
    return found


def _steps(result: Result) -> int:
    """Steps that were made: fewer than asked for where the seconds were spent."""
    return max(int(_number(row["step"])) for row in result.tables["losses"])


def _over_seeds(found: dict[str, Any], name: str, digits: str) -> str:
    """The median with the least and the greatest where they differ as shown."""
    middle = f"{found[name]:{digits}}"
    if f"{name}_least" not in found:
        return middle
    least, greatest = (f"{found[f'{name}_{end}']:{digits}}" for end in ("least", "greatest"))
    return middle if least == greatest else f"{middle} ({least} to {greatest})"


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
