"""From journeys to a result: the same tensors and token sequences for every walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from probekit import Result, TokenSequence, UsageError
from probekit_plugins.batches import Batches, notes_on_rows, without_padding
from probekit_plugins.walks.journey import Journey, Track, journey
from probekit_plugins.walks.walkers import Walkers, norms

if TYPE_CHECKING:
    import torch

    from probekit import Context, Prompt, Subject
    from probekit_plugins.walks.options import WalkOptions

Scalar = str | int | float | bool | None


def walk(
    subject: Subject,
    prompts: Sequence[Prompt],
    options: WalkOptions,
    context: Context,
    tracks: Callable[[Walkers], Sequence[Track]],
) -> Result:
    """Walk every track from every prompt at every site, and put what was measured into one result, without figures.

    Raises UsageError for an unknown site or decoder, AnalysisError if a walk leaves the finite numbers.
    """
    sites = subject.expand_sites(options.sites)
    if options.top_k > subject.vocabulary:
        raise UsageError(f"top_k is {options.top_k}, but the vocabulary has {subject.vocabulary} tokens.")
    batches = Batches(context, options)
    result = Result(sequences={"prompt": [], "walk": []})
    for site in sites:
        walkers = Walkers(subject, prompts, site, options.walkers, context, batches)
        subject.decode(walkers.embeddings[:1, :1], 1, options.decoder)  # before the walk, if it cannot
        result.tensors |= _lengths(walkers, prompts, options)
        for track in tracks(walkers):
            found = journey(walkers, track, options, context, batches)
            for number, prompt in enumerate(prompts):
                _store(result, found, subject, prompt, number, site, track, options)
        result.sequences["prompt"] += [
            TokenSequence(prompt.input_ids[0].tolist(), prompt.tokens, {"prompt": number, "site": site})
            for number, prompt in enumerate(prompts)
        ]
    if subject.conditioned_on_ids:
        result.notes.append(
            "Conditioned on ids: blocks of this model read the token ids again, and were given the prompt's own along "
            "the whole walk."
        )
    result.notes += notes_on_rows(subject) + batches.notes()
    return result


def _lengths(walkers: Walkers, prompts: Sequence[Prompt], options: WalkOptions) -> dict[str, torch.Tensor]:
    """How long a prompt's embeddings and its activation are, `‖e*‖` and `‖t‖` in L2: what d_i and d_o are small or
    large against.
    """
    lengths = {
        "embeddings_l2": norms(walkers.embeddings * walkers.mask, 2),
        "activation_l2": norms(without_padding(walkers.target, walkers.mask), 2),
    }
    return {
        f"{number}/{walkers.site}/{name}": values[number * options.walkers]
        for number in range(len(prompts))
        for name, values in lengths.items()
    }


def _store(
    result: Result,
    found: Journey,
    subject: Subject,
    prompt: Prompt,
    number: int,
    site: str,
    track: Track,
    options: WalkOptions,
) -> None:
    """One prompt's share of a journey."""
    count, length = options.walkers, len(prompt.tokens)
    chosen = slice(number * count, (number + 1) * count)
    prefix = f"{number}/{site}/{track.name}"
    for field in fields(Journey):
        tensor = getattr(found, field.name)
        if field.name == "embeddings":
            tensor = tensor[chosen, :length]
        elif field.name == "ids":
            tensor = tensor[:, chosen, :length]
        elif field.name != "steps":
            tensor = tensor[:, chosen]
        result.tensors[f"{prefix}/{field.name}"] = tensor
    ids = result.tensors[f"{prefix}/ids"].cpu()
    truth = prompt.input_ids[0].cpu()
    result.tensors[f"{prefix}/changed"] = (ids[..., 0] != truth).sum(-1)
    labels: dict[str, Scalar] = {"prompt": number, "site": site, "track": track.name}
    last = len(found.steps) - 1
    for walker in range(count):
        # Every step of the first walker, and the end of the others.
        for index in range(last + 1) if walker == 0 else (last,):
            for rank in range(ids.shape[-1]) if index == last else (0,):
                sequence = ids[index, walker, :, rank].tolist()
                where: dict[str, Scalar] = {"walker": walker, "step": int(found.steps[index]), "rank": rank}
                if (index, rank) == (last, 0):
                    where["text"] = subject.text(sequence)
                result.sequences["walk"].append(TokenSequence(sequence, subject.tokens(sequence), {**labels, **where}))
