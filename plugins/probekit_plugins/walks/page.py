"""The page of a walk: how far the input went, how far the activation, and which tokens it passed."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.walks.options import WalkOptions

Band = list[tuple[float, float, float, float]]

# What the marks of tokens mean: a walk is meant to leave the prompt, so the other one is not wrong.
MARKS = {"right": "the prompt's own token", "wrong": "another token"}

FIGURES = {
    "r_l1": "r₁",
    "r_l2": "r₂",
    "r_over_noise_l1": "r₁ / r₁ of noise",
    "r_over_noise_l2": "r₂ / r₂ of noise",
    "input_l2": "d_i, L2",
    "output_l2": "d_o, L2",
    "changed_share": "tokens changed",
}


def draw(
    result: Result, page: Page, options: WalkOptions, method: str, more: Callable[[], None] = lambda: None
) -> None:
    """Everything that walks have in common, after a paragraph on what this one does; `more` follows the overview."""
    page.prose(
        f"{method}\n\n"
        "d_i = ‖e_n − e*‖ is how far the input has gone from the prompt's embeddings, d_o = ‖O(e_n) − t‖ how far the "
        "activation has, and r = d_i / d_o: the larger, the less the layer notices. r alone depends on the model's "
        f"scale, so beside it stands the r of Gaussian noise of the same length (median of {options.noise_draws}): 1 "
        "means that the walk is no better than going anywhere."
    )
    _overview(result, page)
    more()
    prompts = result.sequences["prompt"]
    for prompt in prompts:
        _one_prompt(result, page, prompt, options, many=len(prompts) > 1)


def tracks_of(result: Result, controls: bool = True) -> list[str]:
    """The names of the tracks in order, controls last or left out."""
    rows = result.tables["walkers"]
    return [str(name) for name in dict.fromkeys(r["track"] for r in rows if controls or not r["control"])]


def _overview(result: Result, page: Page) -> None:
    rows: list[list[Any]] = []
    pairs = dict.fromkeys((row["site"], row["track"]) for row in result.tables["walkers"])
    for site, track in pairs:
        key = f"{site}/{track}"
        spread = [
            spread_of(*(result.metrics[f"{key}/{name}_{of}"] for of in ("median", "min", "max"))) for name in FIGURES
        ]
        rows.append([site, track, *spread, result.metrics[f"{key}/orthogonality_max"]])
    page.table(
        ["site", "walk", *FIGURES.values(), "|g·u| / ‖g‖‖u‖, greatest"],
        rows,
        caption="At the end of the walk: median over prompts and walkers, least to greatest in brackets",
    )


def spread_of(middle: Any, least: Any, greatest: Any) -> str | None:
    """`median (least – greatest)` with three digits, or None."""
    if middle is None:
        return None
    if least == greatest:
        return f"{middle:.3g}"
    return f"{middle:.3g} ({least:.3g} – {greatest:.3g})"


def _one_prompt(result: Result, page: Page, prompt: TokenSequence, options: WalkOptions, many: bool) -> None:
    number, site = int(prompt.labels["prompt"] or 0), str(prompt.labels["site"])
    page.heading(f"{site}, prompt {number + 1}" if many else site)
    tracks, prefix = tracks_of(result), f"{number}/{site}"
    for track in tracks_of(result, controls=False):
        _tokens(result, page, prompt, f"{prefix}/{track}", track, many)
    for order in ("l1", "l2"):
        page.band(
            {track: ratio_band(result, f"{prefix}/{track}", order) for track in tracks},
            x="step",
            y=f"r, {order.upper()}",
            caption=f"r = d_i / d_o in {order.upper()} over steps: median and range over walkers",
            log_y=True,
        )
    page.band(
        {track: noise_band(result, f"{prefix}/{track}") for track in tracks},
        x="step",
        y="r / r of noise, L2",
        caption="r against Gaussian noise of the same input distance, L2; 1 is no better than noise",
        log_y=True,
    )
    page.band(
        {
            track: _band(result, f"{prefix}/{track}", result.tensors[f"{prefix}/{track}/orthogonality"])
            for track in tracks
        },
        x="step",
        y="|g·u| / ‖g‖‖u‖",
        caption="How far a step is from orthogonal to the gradient of the summed activation, worst position",
        log_y=True,
    )
    changed = {track: result.tensors[f"{prefix}/{track}/changed"] for track in tracks}
    if any(counts.any() for counts in changed.values()):
        page.band(
            {track: _band(result, f"{prefix}/{track}", counts) for track, counts in changed.items()},
            x="step",
            y="tokens that differ",
            caption=f"Tokens that differ from the prompt's, decoded by {options.decoder}",
        )
    else:
        page.prose(f"All walkers stayed so near that every token decodes to the prompt's own ({options.decoder}).")
    _walkers(result, page, number, site, many)


def _tokens(result: Result, page: Page, prompt: TokenSequence, prefix: str, track: str, many: bool) -> None:
    walked = [
        sequence
        for sequence in result.sequences["walk"]
        if all(sequence.labels[key] == prompt.labels[key] for key in ("prompt", "site"))
        and sequence.labels["track"] == track
        and sequence.labels["walker"] == 0
    ]
    steps = result.tensors[f"{prefix}/steps"].tolist()
    page.trajectory(
        {
            "first walker": [
                TokenRow(
                    f"step {sequence.labels['step']}",
                    _marked(sequence, prompt),
                    note=_note(result, prefix, steps.index(sequence.labels["step"])),
                )
                for sequence in walked
                if sequence.labels["rank"] == 0
            ]
        },
        reference=TokenRow("prompt", [Token(text) for text in prompt.tokens]),
        caption=f"Tokens along the walk: {track}",
        marks=MARKS,
        collapsed=many,
    )
    page.tokens(
        [
            TokenRow(f"top {int(sequence.labels['rank'] or 0) + 1}", _marked(sequence, prompt))
            for sequence in walked
            if sequence.labels["step"] == steps[-1]
        ],
        caption=f"Candidates for each position at the end, best first: {track}, first walker",
        collapsed=True,
    )


def _note(result: Result, prefix: str, index: int) -> str:
    distance, moved = (float(result.tensors[f"{prefix}/{name}_l2"][index, 0]) for name in ("input", "output"))
    return f"d_i {distance:.3g}, d_o {moved:.3g}" + (f", r₂ {distance / moved:.3g}" if moved else "")


def _marked(sequence: TokenSequence, prompt: TokenSequence) -> list[Token]:
    return [
        Token(text, mark="right" if index == wanted else "wrong", title=f"token {index}, prompt's {wanted}")
        for text, index, wanted in zip(sequence.tokens, sequence.ids, prompt.ids, strict=True)
    ]


def ratio_band(result: Result, prefix: str, order: str) -> Band:
    """r over steps; the first step, at the prompt itself, has none."""
    inputs, outputs = result.tensors[f"{prefix}/input_{order}"], result.tensors[f"{prefix}/output_{order}"]
    return _band(result, prefix, inputs, outputs)


def noise_band(result: Result, prefix: str) -> Band:
    """r over that of noise, `median over draws of the noise's d_o / d_o`, over steps."""
    noise = result.tensors[f"{prefix}/noise_l2"]
    medians = [[median(draws) for draws in walkers] for walkers in noise.tolist()]
    return _band(result, prefix, medians, result.tensors[f"{prefix}/output_l2"])


def _band(result: Result, prefix: str, values: Any, divisors: Any = None) -> Band:
    """(step, median, least, greatest) over walkers, of values or of ratios; where none is defined, a gap."""
    points: Band = []
    steps = result.tensors[f"{prefix}/steps"].tolist()
    for index, step in enumerate(steps[: len(values)]):
        row = [float(value) for value in values[index]]
        if divisors is not None:
            row = [value / float(by) for value, by in zip(row, divisors[index], strict=True) if value > 0 and by > 0]
        if row:
            points.append((step, median(row), min(row), max(row)))
    return points


def _walkers(result: Result, page: Page, number: int, site: str, many: bool) -> None:
    rows = [row for row in result.tables["walkers"] if row["prompt"] == number and row["site"] == site]
    columns = {
        "track": "walk",
        "walker": "walker",
        "input_l1": "d_i, L1",
        "output_l1": "d_o, L1",
        "r_l1": "r₁",
        "input_l2": "d_i, L2",
        "output_l2": "d_o, L2",
        "r_l2": "r₂",
        "r_over_noise_l1": "r₁ / noise's",
        "r_over_noise_l2": "r₂ / noise's",
        "orthogonality": "|g·u| / ‖g‖‖u‖",
        "product": "|g·u| / ‖u‖",
        "changed": "tokens changed",
        "text": "text",
    }
    page.table(
        list(columns.values()),
        [[row[column] for column in columns] for row in rows],
        caption="All walkers, at the end",
        collapsed=many,
    )
