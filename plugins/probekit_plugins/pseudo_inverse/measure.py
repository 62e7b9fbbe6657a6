"""What the analysis measures: the margins of the whole vocabulary, and what each decoder makes of each site."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, Result, TokenSequence, UsageError
from probekit_plugins.head import predicted_tokens
from probekit_plugins.pseudo_inverse.figures import figured, named_tokens

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.pseudo_inverse import PseudoInverseOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: PseudoInverseOptions, context: Context) -> Result:
    """Measure the margins and look through the lens. Raises UsageError for a top_k beyond the vocabulary."""
    result = Result()
    decoders = _usable_decoders(subject, result, options)
    size = predicted_tokens(subject) if "unembedding" in decoders else subject.vocabulary
    if options.top_k > size:
        raise UsageError(f"top_k is {options.top_k}, but the vocabulary has {size} tokens.")
    if options.margins:
        _measure_margins(subject, _with_margins(subject, decoders, result), result, context)
    _look(subject, prompts, decoders, result, options)
    return figured(result, options)


def _usable_decoders(subject: Subject, result: Result, options: PseudoInverseOptions) -> list[str]:
    chosen: list[str] = list(dict.fromkeys(options.decoders))
    if "unembedding" in chosen and subject.head_width != subject.width:
        headless = subject.anatomy.unembedding is None
        why = "the model has none" if headless else "the model's does not read the embedding's width"
        chosen.remove("unembedding")
        result.notes.append(f"The unembedding decoder is left out: {why}.")
        if not chosen:
            raise AnalysisError(f"No decoder is left but the unembedding, and {why}.")
    rank = (
        getattr(subject.decoder("pseudo-inverse"), "rank", subject.width)
        if "pseudo-inverse" in chosen
        else subject.width
    )
    if "pseudo-inverse" in chosen:
        result.tensors["embedding_rank"] = torch.tensor(rank)
    if rank < subject.width:
        result.notes.append(
            f"The embedding matrix has rank {rank} of {subject.width}: its Gram matrix is singular, and the "
            "pseudo-inverse was taken from an eigendecomposition over the directions that are there."
        )
    return chosen


def _with_margins(subject: Subject, decoders: Sequence[str], result: Result) -> list[str]:
    """The decoders that score every token of the vocabulary, its own among them."""
    scored = predicted_tokens(subject)
    if "unembedding" not in decoders or scored == subject.vocabulary:
        return list(decoders)
    result.notes.append(
        f"The unembedding has no margins: the model's head scores the first {scored:,} of the {subject.vocabulary:,} "
        "tokens that it embeds."
    )
    return [name for name in decoders if name != "unembedding"]


def _margins_of(subject: Subject, name: str, context: Context) -> dict[str, torch.Tensor]:
    """The margins of one decoder over the whole vocabulary, with their progress."""
    with context.progress(f"margins, {name}", subject.vocabulary) as progress:
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            progress.step(rows - done)
            done = rows

        margins, rivals = subject.margins(name, advance)
    return {"margins": margins, "rivals": rivals}


def _measure_margins(subject: Subject, decoders: Sequence[str], result: Result, context: Context) -> None:
    for name in decoders:
        kept = context.stage(f"margins/{name}", partial(_margins_of, subject, name, context))
        subject.check_finite(kept["margins"], f"The margin of the {name} decoder")
        result.tensors |= {f"margins/{name}": kept["margins"], f"rivals/{name}": kept["rivals"]}
    named = named_tokens(result, decoders)
    result.sequences["vocabulary"] = [TokenSequence(named, subject.tokens(named))]


def _look(
    subject: Subject, prompts: Sequence[Prompt], decoders: Sequence[str], result: Result, options: PseudoInverseOptions
) -> None:
    """The lens: what each decoder makes of each site, beside the token that stands there and the one that
    follows.
    """
    sites = subject.expand_sites(options.sites)
    kept: list[str] = []
    for number, prompt in enumerate(prompts):
        ids = prompt.input_ids[0].cpu()
        result.sequences.setdefault("prompt", []).append(TokenSequence(ids.tolist(), prompt.tokens, {"prompt": number}))
        activations = subject.capture(prompt.input_ids, sites)
        decodable = (1, len(ids), subject.width)
        kept = [site for site in sites if activations[site].shape == decodable]
        for site in kept:
            subject.check_finite(activations[site], f"The activation at {site}")
            for name in decoders:
                found = subject.decode(activations[site], top_k=options.top_k, decoder=name)[0].cpu()
                for rank in range(found.shape[-1]):
                    row = found[:, rank].tolist()
                    result.sequences.setdefault("lens", []).append(
                        TokenSequence(
                            row,
                            subject.tokens(row),
                            {"prompt": number, "site": site, "decoder": name, "rank": rank},
                        )
                    )
    left_out = [site for site in sites if site not in kept]
    if left_out:
        result.notes.append(
            f"Left out of the lens, because they are not {subject.width} wide as the embedding is, or have other "
            f"positions than the prompt: {', '.join(left_out)}."
        )
