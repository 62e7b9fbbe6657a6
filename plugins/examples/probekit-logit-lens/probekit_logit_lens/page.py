"""The lens's page: what each site would predict, position by position, and how far that is from the model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence
from probekit_logit_lens import MODEL

if TYPE_CHECKING:
    from probekit import Page, Result

# More could not be read: prompts that have a picture of their own, and positions in one, the last of the prompt.
PICTURES = 4
POSITIONS = 64
Row = dict[str, Any]


def draw(result: Result, page: Page) -> None:
    """The picture of each prompt, then the figures of all positions by depth."""
    rows: list[Row] = result.tables["sites"]
    prompts = result.sequences["prompt"]
    page.prose(
        "A model reads its prediction off the last block only. The logit lens reads it off every block, with the same "
        "head: what would the model say if it stopped there? The text in a cell is the most probable next token after "
        "the prompt's token on top of the column; the colour is its probability. Hover over a cell, or move to it with "
        "the arrow keys, for the tokens behind it.\n\n"
        "Read a column downwards: guesses that turn into the model's prediction. Where a column is underlined early, "
        "the prediction is there early, and later blocks only make it surer."
    )
    sites = [row["site"] for row in rows]
    largest = _largest_divergence(result, prompts[:PICTURES], sites)
    for prompt in prompts[:PICTURES]:
        _picture(result, page, prompt, sites, largest, len(prompts) > 1)
    if len(prompts) > PICTURES:
        page.prose(f"The other {len(prompts) - PICTURES} prompts have no picture; their figures are among those below.")
    _by_depth(result, page, rows)


def _largest_divergence(result: Result, prompts: Sequence[TokenSequence], sites: Sequence[str]) -> float:
    """Where the colours of the pictures end: the same for all, and not at the embedding, whose lens repeats the token
    that stands there and is so far off that all blocks would look alike beside it.
    """
    counted = [place for place, site in enumerate(sites[:-1]) if site != "embedding"] or [0]
    return max(float(result.tensors[f"kl/{prompt.labels['prompt']}"][counted].max()) for prompt in prompts)


def _picture(
    result: Result, page: Page, prompt: TokenSequence, sites: Sequence[str], largest: float, several: bool
) -> None:
    number = prompt.labels["prompt"]
    if several:
        page.heading(f"Prompt {int(number or 0) + 1}")
    count = len(prompt.ids)
    start = max(0, count - POSITIONS)
    best: dict[str, list[TokenSequence]] = {site: [] for site in sites}
    for sequence in result.sequences["lens"]:
        if sequence.labels["prompt"] == number:
            best[str(sequence.labels["site"])].append(sequence)
    figures = {
        name: result.tensors[f"{name}/{number}"] for name in ("probability", "kl", "next_probability", "next_rank")
    }
    part = "" if start == 0 else f" (the last {POSITIONS} of {count} positions)"
    follows = [*map(Token, prompt.tokens[1:]), Token("", title="not known: the prompt ends here")]
    page.tokens(
        [
            TokenRow("the prompt", [Token(text) for text in prompt.tokens[start:]]),
            *(
                TokenRow(
                    site, [_cell(prompt, best, figures, place, site, position) for position in range(start, count)]
                )
                for place, site in enumerate(sites)
            ),
            TokenRow("what follows", follows[start:]),
        ],
        caption=f"The most probable next token by site{part}",
        legend="probability; right, and underlined: the model's own prediction",
        align=True,
    )
    shown = sites[:-1]  # the model's divergence from itself is zero
    far = shown[0] == "embedding" and figures["kl"][0, start:].max() > largest
    beyond = "; the embedding is beyond the scale" if far else ""
    page.heatmap(
        [figures["kl"][place, start:].tolist() for place in range(len(shown))],
        x_labels=prompt.tokens[start:],
        y_labels=shown,
        x="token of the prompt",
        y="site",
        value="bits",
        caption=f"KL(p_final ‖ p_site): bits lost by taking the lens for {MODEL}{part}{beyond}",
        description="Divergence of the lens's distribution from the model's own, by site and position.",
        domain=(0.0, largest) if largest > 0 else None,
    )


def _cell(
    prompt: TokenSequence,
    best: Mapping[str, Sequence[TokenSequence]],
    figures: Mapping[str, Any],
    place: int,
    site: str,
    position: int,
) -> Token:
    """The first choice at one site and position; what is behind it in the hover text."""
    ranked = best[site]
    probabilities = figures["probability"][place, position]
    lines = [f"{site}, after {prompt.tokens[position]!r}"]
    lines += [
        f"{sequence.tokens[position]!r} {probability:.1%}"
        for sequence, probability in zip(ranked, probabilities.tolist(), strict=True)
    ]
    if position + 1 < len(prompt.ids):
        lines.append(
            f"what follows, {prompt.tokens[position + 1]!r}: {figures['next_probability'][place, position]:.1%}, "
            f"rank {figures['next_rank'][place, position]}"
        )
    own = site == MODEL
    if not own:
        lines.append(f"KL from {MODEL}: {figures['kl'][place, position]:.2f} bits")
    agrees = not own and ranked[0].ids[position] == best[MODEL][0].ids[position]
    return Token(
        ranked[0].tokens[position],
        mark="right" if agrees else None,
        value=float(probabilities[0]),
        title="\n".join(lines),
    )


def _by_depth(result: Result, page: Page, rows: Sequence[Row]) -> None:
    *sites, model = rows
    page.heading("By depth")
    positions = result.metrics["positions"]
    if len(sites) > 1:
        page.band(
            {"KL(p_final ‖ p_site)": [(row["site"], row["kl_median"], row["kl_low"], row["kl_high"]) for row in sites]},
            x="site",
            y="bits",
            caption=f"Divergence from {MODEL}: median over {positions} positions, and the middle half of them",
        )
        series = {
            "agreement: first token is the model's prediction, share of positions": "agreement",
            "p(prediction): median probability of the model's prediction": "final_probability_median",
            "p(next): median probability of the token that follows": "next_probability_median",
        }
        page.lines(
            {
                name: [(row["site"], row[column]) for row in sites]
                for name, column in series.items()
                if model[column] is not None
            },
            x="site",
            y="share or probability",
            caption="How much of the prediction is there",
        )
    columns = {
        "site": "site",
        "agreement": "agreement",
        "KL, bits": "kl_median",
        "entropy, bits": "entropy_median",
        "p(prediction)": "final_probability_median",
        "p(next)": "next_probability_median",
        "rank of next": "next_rank_median",
    }
    page.table(
        list(columns),
        [[row[column] for column in columns.values()] for row in rows],
        caption=f"By site: agreement, and medians over the {positions} positions",
        in_summary=True,
    )
    page.prose(
        "Agreement is the share of positions where the lens's first token is that of the model, its prediction. Next "
        "is the token that follows in the prompt; after the last one it is not known. "
        "KL(p_final ‖ p_site) = Σ p_final log₂(p_final / p_site), over the vocabulary, is zero where the lens is the "
        "model. Entropy is the lens's own doubt: 0 if it is sure, log₂ of the vocabulary if it knows nothing. The "
        "first choice has rank 1."
    )
