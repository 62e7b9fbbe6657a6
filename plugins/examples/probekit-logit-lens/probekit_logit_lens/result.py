"""From prompts to a result: which sites can be read, the figures of each, and the finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from probekit import AnalysisError, Result, TokenSequence
from probekit_logit_lens import MODEL
from probekit_logit_lens.lens import look

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_logit_lens import LogitLensOptions

# The finding names the site from which on the lens agrees with the model at this share of positions.
MOST = 0.5

UNTRAINED = (
    "The head was trained on what the last block returns, and on nothing before it. Where the lens reads noise, the "
    "site may know the next token all the same, in directions that later blocks turn: a high divergence is no proof of "
    "ignorance. A tuned lens (Belrose et al. 2023, arXiv 2303.08112) learns these turns."
)
Figures = Mapping[str, torch.Tensor]
Row = dict[str, Any]


def run(subject: Subject, prompts: Sequence[Prompt], options: LogitLensOptions, context: Context) -> Result:
    """Look at every prompt, and take the figures together. A resumed run looks only at the prompts that are left.

    Raises AnalysisError if the model has no head that reads its blocks, or no site can be read by it, and as `look`
    does.
    """
    width = _head_width(subject)
    result = Result(notes=[UNTRAINED])
    sites = _readable(subject, prompts[0], _in_order(subject, options.sites), width, result)
    found: list[Figures] = []
    for number, prompt in enumerate(prompts):
        label = f"prompt {number + 1}"
        compute = partial(look, subject, prompt.input_ids, sites, options.top_k, options.norm, context, label)
        figures = context.stage(label, compute)
        found.append(figures)
        _keep(subject, number, prompt, figures, [*sites, MODEL], result)

    rows = _table(found, [*sites, MODEL])
    result.tables["sites"] = rows
    result.metrics["positions"] = sum(len(figures["kl"][0]) for figures in found)
    for row in rows[:-1]:
        result.metrics |= {
            f"{row['site']}/{name}": row[name]
            for name in ("agreement", "kl_median", "final_probability_median", "next_rank_median")
        }
    _check_last_block(subject, found, result)
    _note_precision(subject, result)
    made_for = {f"block.{len(subject.anatomy.blocks) - 1}", "norm"} if options.norm else {"norm"}
    in_depth = [row for row in rows[:-1] if row["site"] in subject.sites()]  # modules within blocks have no place there
    result.finding = _finding(in_depth or rows[:-1], made_for)
    return result


def _head_width(subject: Subject) -> int:
    """The width that the head reads. Raises AnalysisError if there is none."""
    kind = type(subject.model).__name__
    if subject.anatomy.unembedding is None or not subject.has_logits:
        raise AnalysisError(f"The logit lens reads activations with the model's own head, and {kind} has none.")
    if subject.head_width is None:
        raise AnalysisError(
            f"The logit lens needs a head that reads the last block through nothing but a norm, and {kind} has more "
            "between them."
        )
    return subject.head_width


def _in_order(subject: Subject, grammar: str) -> list[str]:
    """The sites that are asked for, each once, in the order in which they run; paths of modules come last, as given."""
    order = subject.sites()
    sites = [site for site in dict.fromkeys(subject.expand_sites(grammar)) if site != "logits"]  # has a row anyway
    return sorted(sites, key=lambda site: order.index(site) if site in order else len(order))


def _readable(subject: Subject, prompt: Prompt, sites: Sequence[str], width: int, result: Result) -> list[str]:
    """The sites whose activation is `[1, S, width]`; the others are noted."""
    start = prompt.input_ids[:, :2] if subject.anatomy.sequence is None else prompt.input_ids
    shapes = {site: tuple(activation.shape) for site, activation in subject.capture(start, sites).items()}
    kept = [site for site in sites if shapes[site] == (*start.shape, width)]
    left_out = ", ".join(site for site in sites if site not in kept)
    if not kept:
        raise AnalysisError(
            f"The head reads activations of width {width} at every token, and none of the sites has that: "
            f"{left_out or 'logits'}; name others, such as -o sites=blocks."
        )
    if left_out:
        result.notes.append(
            f"Left out, because they are not {width} wide at every token, as the head needs it: {left_out}."
        )
    return kept


def _keep(subject: Subject, number: int, prompt: Prompt, figures: Figures, rows: Sequence[str], result: Result) -> None:
    """Put what was found at one prompt into the result: its tokens as sequences, the rest as tensors."""
    labels = {"prompt": number}
    ids = prompt.input_ids[0].tolist()
    result.sequences.setdefault("prompt", []).append(TokenSequence(ids, prompt.tokens, {**labels}))
    for place, site in enumerate(rows):
        for rank in range(figures["ids"].shape[-1]):
            best = figures["ids"][place, :, rank].tolist()
            result.sequences.setdefault("lens", []).append(
                TokenSequence(best, subject.tokens(best), {**labels, "site": site, "rank": rank})
            )
    result.tensors |= {
        f"{name}/{number}": values for name, values in figures.items() if name not in ("ids", "last_block")
    }


def _table(found: Sequence[Figures], sites: Sequence[str]) -> list[Row]:
    """A row for each site: its figures over the positions of all prompts."""
    together = {
        name: torch.cat([figures[name] for figures in found], dim=1).double()
        for name in found[0]
        if name != "last_block"
    }
    first = together["ids"][:, :, 0]
    agreement = (first == first[-1]).double().mean(dim=1)
    rows: list[Row] = []
    for place, site in enumerate(sites):
        low, median, high = _quantiles(together["kl"][place], 0.25, 0.5, 0.75)
        rows.append(
            {
                "site": site,
                "agreement": float(agreement[place]),
                "kl_low": low,
                "kl_median": median,
                "kl_high": high,
                **{
                    f"{name}_median": _quantiles(together[name][place], 0.5)[0]
                    for name in ("final_probability", "entropy", "next_probability", "next_rank")
                },
            }
        )
    return rows


def _quantiles(values: torch.Tensor, *shares: float) -> list[float | None]:
    """None where there is nothing: prompts of one token have no next one."""
    if not len(values):
        return [None for _ in shares]
    found: list[float | None] = torch.quantile(values, torch.tensor(shares, dtype=values.dtype)).tolist()
    return found


def _check_last_block(subject: Subject, found: Sequence[Figures], result: Result) -> None:
    """At the last block, with the norm, the lens should be the model. If it is not, the reader has to know."""
    largest = torch.stack([figures["last_block"] for figures in found]).double().amax(0)
    difference, logit, precision = largest.tolist()
    result.metrics["last_block_difference"] = difference
    if difference > max(1e-4, 4 * precision) * logit:
        result.notes.append(
            "At the last block, with the norm, the lens's logits differ from the model's own by up to "
            f"{difference:.3g}, where the largest is {logit:.3g}: this model scales or caps its logits after the head, "
            "which the lens leaves out. So its probabilities and divergences are off at every site; first tokens and "
            "ranks are not, as long as scaling and capping keep the order."
        )


def _note_precision(subject: Subject, result: Result) -> None:
    if "quantization" in subject.facts:
        result.notes.append(
            "The model is quantised: the lens reads what the quantised blocks return, and its figures are those of "
            "this model, not of the one that it was made from."
        )


def _finding(rows: Sequence[Row], made_for: set[str]) -> str:
    """One sentence: from which site on the lens says what the model will say. `made_for` are the sites where it does
    so by construction.
    """
    telling = [row for row in rows if row["site"] not in made_for]
    if not telling:
        shares = ", ".join(f"{row['agreement']:.0%} of positions at {row['site']}" for row in rows)
        return (
            "Only what the head was made for was read: there the lens's first token is the model's own by construction "
            f"({shares})."
        )
    settled = next((place for place in range(len(rows)) if all(row["agreement"] >= MOST for row in rows[place:])), None)
    if settled is not None and rows[settled] in telling:
        at, least = rows[settled], min(row["agreement"] for row in rows[settled:])
        before = (
            f"goes from {rows[0]['kl_median']:.2g} bits at {rows[0]['site']} to {at['kl_median']:.2g} bits there"
            if settled
            else f"is {at['kl_median']:.2g} bits there"
        )
        return (
            f"From {at['site']} on, the lens's first token is the model's own at {least:.0%} of positions or more; the "
            f"median KL divergence from the model's own distribution {before}."
        )
    best = max(telling, key=lambda row: row["agreement"])
    return (
        f"{'Before the last block' if len(telling) < len(rows) else 'At the sites read'}, the lens's first token is "
        f"the model's own at {best['agreement']:.0%} of positions at most: at {best['site']}, with a median KL "
        f"divergence from the model's own distribution of {best['kl_median']:.2g} bits."
    )
