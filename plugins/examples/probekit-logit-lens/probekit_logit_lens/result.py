"""From prompts to what is measured: which sites can be read, and what the lens reads at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, Result, TokenSequence
from probekit_logit_lens import MODEL
from probekit_logit_lens.figures import last_block
from probekit_logit_lens.lens import look

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_logit_lens import LogitLensOptions

UNTRAINED = (
    "The head was trained on what the last block returns, and on nothing before it. Where the lens reads noise, the "
    "site may know the next token all the same, in directions that later blocks turn: a high divergence is no proof of "
    "ignorance. A tuned lens (Belrose et al. 2023, arXiv 2303.08112) learns these turns."
)
Figures = Mapping[str, torch.Tensor]


def run(subject: Subject, prompts: Sequence[Prompt], options: LogitLensOptions, context: Context) -> Result:
    """Look at every prompt, and keep what is seen. A resumed run looks only at the prompts that are left.

    Raises AnalysisError if the model has no head that reads its blocks, or no site can be read by it, and as `look`
    does.
    """
    width = _head_width(subject)
    result = Result(notes=[UNTRAINED])
    sites = _readable(subject, prompts[0], _in_order(subject, options.sites), width, result)
    for number, prompt in enumerate(prompts):
        label = f"prompt {number + 1}"
        compute = partial(look, subject, prompt.input_ids, sites, options.top_k, options.norm, context, label)
        _keep(subject, number, prompt, context.stage(label, compute), [*sites, MODEL], result)
    result.tensors["blocks"] = torch.tensor(len(subject.anatomy.blocks))
    _note_last_block(result)
    _note_precision(subject, result)
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
    result.tensors |= {f"{name}/{number}": values for name, values in figures.items() if name != "ids"}


def _note_last_block(result: Result) -> None:
    """At the last block, with the norm, the lens should be the model. If it is not, the reader has to know."""
    difference, logit, precision = last_block(result)
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
