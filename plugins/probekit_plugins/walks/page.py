"""The page of a walk: how far the input went, how far the activation, and which tokens it passed."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from probekit import Token, TokenRow, TokenSequence

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.walks.options import WalkOptions

Band = list[tuple[float, float, float, float]]

# What the marks of tokens mean: a walk is meant to leave the prompt, so the other one is not wrong.
MARKS = {"right": "the prompt's own token", "wrong": "another token"}

ORTHOGONALITY = (
    "g = ∇ΣO is the gradient of the activation's sum, u a step; the greatest over steps and positions. At 0 the step "
    "is orthogonal to g."
)

DECODERS = {
    "nearest": "the nearest row of the embedding matrix",
    "cosine": "the row of the embedding matrix with the greatest cosine",
    "pseudo-inverse": "the pseudo-inverse of the embedding matrix",
    "unembedding": "the unembedding",
}

# Columns of the overview: the figure and its format.
OVERVIEW = {
    "r₂ over noise's": ("r_over_noise_l2", ".3g"),
    "r₂": ("r_l2", ".3g"),
    "d_i / ‖e*‖": ("input_share", ".2g"),
    "d_o / ‖t‖": ("output_share", ".2g"),
    "tokens changed": ("changed_share", ".0%"),
}
ABSOLUTE = {
    "d_i, L2": ("input_l2", ".3g"),
    "d_o, L2": ("output_l2", ".3g"),
    "r₁ over noise's": ("r_over_noise_l1", ".3g"),
    "r₁": ("r_l1", ".3g"),
}


def draw(
    result: Result,
    page: Page,
    options: WalkOptions,
    method: str,
    more: Callable[[], None] = lambda: None,
    orthogonal: bool = False,
) -> None:
    """Everything that walks have in common, between what a walk is and what this one does (`method`); `more` follows
    the overview, and an `orthogonal` walk has a chart of how orthogonal its steps are.
    """
    page.prose(
        "A walk changes the prompt's embeddings step by step, and looks for changes that the activation at a site "
        "hardly shows: inputs that the layer takes for the same. Below, e* are the prompt's embeddings, O(e) is the "
        "activation that embeddings e lead to, t = O(e*) is the prompt's, and e_n is where the walk is after n steps."
        "\n\n"
        f"{method} There are {options.walkers} walkers from each prompt: the same walk with other random numbers.\n\n"
        "d_i = ‖e_n − e*‖ is how far the input has gone, d_o = ‖O(e_n) − t‖ how far the activation has, and r = d_i / "
        "d_o: r₁ in the L1 norm, r₂ in L2. The larger r, the less the layer notices. But r follows the model's scale, "
        "so read it over noise's: the r of the walk over that of Gaussian noise with the same d_i (median of "
        f"{options.noise_draws}). At 1 the walk is no better than going anywhere; at 10 the activation has moved a "
        "tenth as far as under noise."
    )
    _overview(result, page)
    more()
    prompts = result.sequences["prompt"]
    for prompt in prompts:
        _one_prompt(result, page, prompt, options, orthogonal, many=len(prompts) > 1)


def tracks_of(result: Result, controls: bool = True) -> list[str]:
    """The names of the tracks in order, controls last or left out."""
    rows = result.tables["walkers"]
    return [str(name) for name in dict.fromkeys(r["track"] for r in rows if controls or not r["control"])]


def _overview(result: Result, page: Page) -> None:
    pairs = list(dict.fromkeys((row["site"], row["track"]) for row in result.tables["walkers"]))
    several = len({site for site, _ in pairs}) > 1

    def rows(columns: dict[str, tuple[str, str]]) -> list[list[Any]]:
        return [
            [
                *([site] if several else []),
                track,
                *(_metric(result, f"{site}/{track}/{name}", form) for name, form in columns.values()),
            ]
            for site, track in pairs
        ]

    first = ["site", "walk"] if several else ["walk"]
    page.table(
        [*first, *OVERVIEW],
        rows(OVERVIEW),
        caption="At the end of the walk: median over prompts and walkers, least to greatest in brackets",
    )
    angles = [result.metrics[f"{site}/{track}/orthogonality_max"] for site, track in pairs]
    page.table(
        [*first, *ABSOLUTE, "|g·u| / (‖g‖‖u‖)"],
        [[*row, angle] for row, angle in zip(rows(ABSOLUTE), angles, strict=True)],
        caption="The same in L1 and in absolute figures, and how far steps are from orthogonal to the gradient",
        remark=ORTHOGONALITY,
        collapsed=True,
    )


def _metric(result: Result, name: str, form: str) -> str | None:
    """A metric's median and range; nothing for one that a result of an earlier version lacks."""
    middle, least, greatest = (result.metrics.get(f"{name}_{of}") for of in ("median", "min", "max"))
    return spread_of(middle, least, greatest, form)


def spread_of(middle: Any, least: Any, greatest: Any, form: str = ".3g") -> str | None:
    """`median (least – greatest)`, without the range where both ends read the same; None without figures."""
    if middle is None:
        return None
    shown, low, high = (format(figure, form) for figure in (middle, least, greatest))
    return shown if low == high else f"{shown} ({low} – {high})"


def share_of(least: float, greatest: float) -> str:
    """A length over another in words: `18.7% to 21.7% of`, or beyond the whole, `11.4 to 12 times`."""
    beyond = greatest >= 1
    ends = dict.fromkeys(f"{end:.3g}" if beyond else f"{100 * end:.3g}%" for end in (least, greatest))
    return f"{' to '.join(ends)} {'times' if beyond else 'of'}"


def _one_prompt(
    result: Result, page: Page, prompt: TokenSequence, options: WalkOptions, orthogonal: bool, many: bool
) -> None:
    number, site = int(prompt.labels["prompt"] or 0), str(prompt.labels["site"])
    page.heading(f"{site}, prompt {number + 1}" if many else site)
    tracks, prefix = tracks_of(result), f"{number}/{site}"
    page.band(
        {track: noise_band(result, f"{prefix}/{track}") for track in tracks},
        x="step",
        y="r₂ over noise's",
        caption="r₂ over noise's, by step (median and range over walkers; 1 is no better than noise)",
        log_y=True,
    )
    changed = {track: result.tensors[f"{prefix}/{track}/changed"] for track in tracks}
    stayed = not any(counts.any() for counts in changed.values())
    decoder = DECODERS[options.decoder]
    if stayed:
        page.prose(f"Every token of every walker still decodes to the prompt's own, by {decoder}.")
    else:
        page.band(
            {track: _band(result, f"{prefix}/{track}", counts) for track, counts in changed.items()},
            x="step",
            y="tokens changed",
            caption=f"Tokens that are no longer the prompt's, decoded by {decoder}",
        )
    _tokens(result, page, prompt, prefix, tracks, collapsed=many or stayed)
    for order, name in (("l2", "r₂"), ("l1", "r₁")):
        page.band(
            {track: ratio_band(result, f"{prefix}/{track}", order) for track in tracks},
            x="step",
            y=name,
            caption=f"{name} = d_i / d_o in {order.upper()}, by step (median and range over walkers)",
            log_y=True,
        )
    if orthogonal:
        page.band(
            {
                track: _band(result, f"{prefix}/{track}", result.tensors[f"{prefix}/{track}/orthogonality"])
                for track in tracks
            },
            x="step",
            y="|g·u| / (‖g‖‖u‖)",
            caption="How far each step u is from orthogonal to g = ∇ΣO, at the worst position: 0 is orthogonal",
            log_y=True,
        )
    _walkers(result, page, number, site)


def _tokens(result: Result, page: Page, prompt: TokenSequence, prefix: str, tracks: list[str], collapsed: bool) -> None:
    """The first walker's tokens: one slider for all tracks, and the candidates at the end."""
    walked: dict[str, list[TokenSequence]] = {track: [] for track in tracks}
    for sequence in result.sequences["walk"]:
        labels = sequence.labels
        if labels["walker"] == 0 and all(labels[key] == prompt.labels[key] for key in ("prompt", "site")):
            walked[str(labels["track"])].append(sequence)
    steps = {track: result.tensors[f"{prefix}/{track}/steps"].tolist() for track in tracks}
    page.trajectory(
        {
            track: [
                TokenRow(
                    f"step {sequence.labels['step']}",
                    _marked(sequence, prompt),
                    note=_note(result, f"{prefix}/{track}", steps[track].index(sequence.labels["step"])),
                )
                for sequence in walked[track]
                if sequence.labels["rank"] == 0
            ]
            for track in tracks
        },
        reference=TokenRow("prompt", [Token(text) for text in prompt.tokens]),
        caption="Tokens along the walk, first walker",
        marks=MARKS,
        collapsed=collapsed,
    )
    page.tokens(
        [
            TokenRow(f"{track}, top {int(sequence.labels['rank'] or 0) + 1}", _marked(sequence, prompt, others=None))
            for track in tracks
            for sequence in walked[track]
            if sequence.labels["step"] == steps[track][-1]
        ],
        caption="Best candidates for each position at the end, first walker",
        marks={"right": MARKS["right"]},
        collapsed=True,
    )


def _note(result: Result, prefix: str, index: int) -> str:
    distance, moved = (float(result.tensors[f"{prefix}/{name}_l2"][index, 0]) for name in ("input", "output"))
    return f"d_i {distance:.3g}, d_o {moved:.3g}" + (f", r₂ {distance / moved:.3g}" if moved else "")


def _marked(sequence: TokenSequence, prompt: TokenSequence, others: Literal["wrong"] | None = "wrong") -> list[Token]:
    return [
        Token(text, mark="right" if index == wanted else others, title=f"token {index}, prompt's {wanted}")
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


def _walkers(result: Result, page: Page, number: int, site: str) -> None:
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
        "r_over_noise_l1": "r₁ over noise's",
        "r_over_noise_l2": "r₂ over noise's",
        "orthogonality": "|g·u| / (‖g‖‖u‖)",
        "product": "|g·u| / ‖u‖",
        "changed": "tokens changed",
        "text": "text",
    }
    page.table(
        list(columns.values()),
        [[row[column] for column in columns] for row in rows],
        caption="All walkers, at the end",
        remark=ORTHOGONALITY,
        collapsed=True,
    )
