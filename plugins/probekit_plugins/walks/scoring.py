"""From journeys to a result: the same tensors, tables, token sequences and metrics for every walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from statistics import median
from typing import TYPE_CHECKING

from probekit import Result, TokenSequence, UsageError
from probekit_plugins.batches import Batches, notes_on_rows, without_padding
from probekit_plugins.walks.journey import Journey, Track, journey
from probekit_plugins.walks.page import share_of
from probekit_plugins.walks.walkers import Walkers, norms

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.walks.options import WalkOptions

Scalar = str | int | float | bool | None
FIGURES = (
    *("r_l1", "r_l2", "r_over_noise_l1", "r_over_noise_l2", "input_l2", "output_l2"),
    *("input_share", "output_share", "changed_share"),
)
# A finding names the figure of each walk at each site up to so many of them, else the least and the greatest.
MOST_NAMED = 6


def walk(
    subject: Subject,
    prompts: Sequence[Prompt],
    options: WalkOptions,
    context: Context,
    tracks: Callable[[Walkers], Sequence[Track]],
) -> Result:
    """Walk every track from every prompt at every site, and put what came of it into one result.

    Raises UsageError for an unknown site or decoder, AnalysisError if a walk leaves the finite numbers.
    """
    sites = subject.expand_sites(options.sites)
    if options.top_k > subject.vocabulary:
        raise UsageError(f"top_k is {options.top_k}, but the vocabulary has {subject.vocabulary} tokens.")
    batches = Batches(context, options)
    result = Result(tables={"prompts": [], "walkers": []}, sequences={"prompt": [], "walk": []})
    for site in sites:
        walkers = Walkers(subject, prompts, site, options.walkers, context, batches)
        subject.decode(walkers.embeddings[:1, :1], 1, options.decoder)  # before the walk, if it cannot
        result.tables["prompts"] += _scales(walkers, prompts, options)
        for track in tracks(walkers):
            found = journey(walkers, track, options, context, batches)
            for number, prompt in enumerate(prompts):
                _store(result, found, subject, prompt, number, site, track, options)
        result.sequences["prompt"] += [
            TokenSequence(prompt.input_ids[0].tolist(), prompt.tokens, {"prompt": number, "site": site})
            for number, prompt in enumerate(prompts)
        ]
    _summarise(result)
    if subject.conditioned_on_ids:
        result.notes.append(
            "Conditioned on ids: blocks of this model read the token ids again, and were given the prompt's own along "
            "the whole walk."
        )
    result.notes += notes_on_rows(subject) + batches.notes()
    return result


def _scales(walkers: Walkers, prompts: Sequence[Prompt], options: WalkOptions) -> list[dict[str, Scalar]]:
    """How long a prompt's embeddings and its activation are, `‖e*‖` and `‖t‖` in L2: what d_i and d_o are small or
    large against.
    """
    lengths = {
        "embeddings_l2": norms(walkers.embeddings * walkers.mask, 2),
        "activation_l2": norms(without_padding(walkers.target, walkers.mask), 2),
    }
    return [
        {
            "prompt": number,
            "site": walkers.site,
            **{name: float(values[number * options.walkers]) for name, values in lengths.items()},
        }
        for number in range(len(prompts))
    ]


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
    changed = (ids[..., 0] != truth).sum(-1)
    result.tensors[f"{prefix}/changed"] = changed
    labels: dict[str, Scalar] = {"prompt": number, "site": site, "track": track.name}
    for walker in range(count):
        # Every step of the first walker, and the end of the others.
        last = len(found.steps) - 1
        for index in range(last + 1) if walker == 0 else (last,):
            for rank in range(ids.shape[-1]) if index == last else (0,):
                sequence = ids[index, walker, :, rank].tolist()
                where = {"walker": walker, "step": int(found.steps[index]), "rank": rank}
                result.sequences["walk"].append(TokenSequence(sequence, subject.tokens(sequence), {**labels, **where}))
        row = {name: _end(result, f"{prefix}/{name}", walker) for name in ("input_l1", "input_l2")}
        row |= {name: _end(result, f"{prefix}/{name}", walker) for name in ("output_l1", "output_l2")}
        angles = result.tensors[f"{prefix}/orthogonality"][:, walker]
        result.tables["walkers"].append(
            {
                **labels,
                "control": track.control,
                "walker": walker,
                **row,
                **_shares(result, number, site, row),
                **_ratios(result, prefix, row, walker),
                "orthogonality": float(angles.max()),
                "product": float(result.tensors[f"{prefix}/product"][:, walker].max()),
                "changed": int(changed[-1, walker]),
                "changed_share": int(changed[-1, walker]) / length,
                "text": subject.text(ids[-1, walker, :, 0]),
            }
        )


def _end(result: Result, name: str, walker: int) -> float:
    return float(result.tensors[name][-1, walker])


def _shares(result: Result, number: int, site: str, row: dict[str, float]) -> dict[str, Scalar]:
    """`d_i / ‖e*‖` and `d_o / ‖t‖` at the end, in L2."""
    [scale] = [each for each in result.tables["prompts"] if each["prompt"] == number and each["site"] == site]
    lengths = {"input": float(scale["embeddings_l2"] or 0), "output": float(scale["activation_l2"] or 0)}
    return {f"{of}_share": row[f"{of}_l2"] / length if length else None for of, length in lengths.items()}


def _ratios(result: Result, prefix: str, row: dict[str, float], walker: int) -> dict[str, Scalar]:
    """`r = d_i / d_o` at the end, and `r / r_noise`: the median over draws of the noise's d_o, over this d_o."""
    found: dict[str, Scalar] = {}
    for order in ("l1", "l2"):
        output, noise = row[f"output_{order}"], result.tensors[f"{prefix}/noise_{order}"][-1, walker]
        found[f"r_{order}"] = row[f"input_{order}"] / output if output else None
        found[f"r_over_noise_{order}"] = median(noise.tolist()) / output if output else None
    return found


def _summarise(result: Result) -> None:
    """Metrics by site and track over prompts and walkers, and the finding."""
    rows = result.tables["walkers"]
    shown: dict[str, list[str]] = {}
    for site, track in dict.fromkeys((str(row["site"]), str(row["track"])) for row in rows):
        chosen = [row for row in rows if row["site"] == site and row["track"] == track]
        key = f"{site}/{track}"
        for name in FIGURES:
            values = [float(value) for row in chosen if (value := row[name]) is not None]
            for figure, of in (("median", median), ("min", min), ("max", max)):
                result.metrics[f"{key}/{name}_{figure}"] = of(values) if values else None
        result.metrics[f"{key}/orthogonality_max"] = max(float(row["orthogonality"] or 0) for row in chosen)
        if not chosen[0]["control"]:
            shown.setdefault(site, []).append(track)
    if sum(map(len, shown.values())) > MOST_NAMED:
        result.finding = _extremes(result, shown)
    else:
        result.finding = " ".join(_finding(result, site, tracks) for site, tracks in shown.items())


def _finding(result: Result, site: str, tracks: Sequence[str]) -> str:
    """What came of the walks at one site: how far they went, how much less the activation notices than of noise, and
    whether tokens changed; medians over prompts and walkers.
    """
    keys = [f"{site}/{track}" for track in tracks]
    named = [f" ({track})" if len(tracks) > 1 else "" for track in tracks]
    steps = int(result.tensors[f"0/{keys[0]}/steps"][-1])
    shares = [float(share) for key in keys if (share := result.metrics[f"{key}/input_share_median"]) is not None]
    far = f"{share_of(min(shares), max(shares))} their norm " if shares else ""
    noise = _listed([f"{_times(result, key)}{name}" for key, name in zip(keys, named, strict=True)])
    if all(result.metrics[f"{key}/changed_share_max"] == 0 for key in keys):
        tokens = "No token changes."
    else:
        parts = [float(result.metrics[f"{key}/changed_share_median"] or 0) for key in keys]
        changed = _listed([f"{part:.0%}{name}" for part, name in zip(parts, named, strict=True)])
        tokens = f"{changed} of the tokens change."
    return (
        f"At {site}, {steps} steps take the embeddings {far}away from the prompt's; Gaussian noise of that length "
        f"moves the activation {noise} as far as the walk does. {tokens}"
    )


def _extremes(result: Result, shown: dict[str, list[str]]) -> str:
    """The finding of many walks: between which figures they lie."""
    found = [
        (float(value), f"{site}, {track}")
        for site, tracks in shown.items()
        for track in tracks
        if (value := result.metrics[f"{site}/{track}/r_over_noise_l2_median"]) is not None
    ]
    count = sum(map(len, shown.values()))
    if not found:
        return f"In none of {count} walks did the activation move."
    (low, where), (high, there) = min(found), max(found)
    return (
        f"Gaussian noise of a walk's length moves the activation between {low:.3g} times ({where}) and {high:.3g} "
        f"times ({there}) as far as the walk does, over {count} walks at {len(shown)} sites."
    )


def _times(result: Result, key: str) -> str:
    value = result.metrics[f"{key}/r_over_noise_l2_median"]
    return "∞ times" if value is None else f"{float(value):.3g} times"


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
