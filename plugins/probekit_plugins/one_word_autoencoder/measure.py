"""What an autoencoder makes of texts that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit_plugins import corpus
from probekit_plugins.continued import continued
from probekit_plugins.head import predicted_tokens
from probekit_plugins.one_word_autoencoder.figures import AS_IT_WAS, MEMORIES
from probekit_plugins.one_word_autoencoder.objective import (
    contexts,
    encoded,
    nll,
    reconstruction,
    segment_at,
    with_end,
)

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.corpus import Texts
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions
    from probekit_plugins.one_word_autoencoder.model import OneWord


@dataclass(frozen=True)
class Measured:
    """Of each text: what was decoded and what should be, `[n, T]`, the latter −1 behind it; `−log p` of the text given
    its own vectors and given another text's, in nats, `[n]`; and the vectors `[n, k d]`. All on the CPU.
    """

    decoded: torch.Tensor
    wanted: torch.Tensor
    nll: torch.Tensor
    nll_shuffled: torch.Tensor
    vectors: torch.Tensor


def measured(
    model: OneWord,
    texts: Texts,
    end: int | None,
    options: OneWordAutoencoderOptions,
    context: Context,
    batches: Batches,
    key: str,
) -> Measured:
    """Each text encoded, and decoded greedily from its vectors alone; a stage of the run."""
    device, wanted = model.slots.device, expected(texts, end)
    tokens = predicted_tokens(model.decoder)

    def encode(rows: slice) -> torch.Tensor:
        part = texts[rows]
        with torch.no_grad():
            found = encoded(model, part.ids.to(device), part.mask.to(device), options.segment)
        return found[-1]

    def decode(rows: slice) -> torch.Tensor:
        own = vectors[rows]

        def next_logits(ids: torch.Tensor) -> torch.Tensor:
            return model.decode(own, ids, torch.ones_like(ids))[:, -1, :tokens]

        nothing = torch.zeros(len(own), 0, dtype=torch.long, device=device)
        found = continued(next_logits, nothing, wanted.shape[1], end)
        missing = wanted.shape[1] - found.shape[1]
        return torch.nn.functional.pad(found, (0, missing), value=end or 0)

    def losses(rows: slice, given: torch.Tensor) -> torch.Tensor:
        ids, mask = texts.ids[rows].to(device), texts.mask[rows].to(device)
        with torch.no_grad():
            return reconstruction(model, given[rows], ids, mask, end).sum(-1)

    count = len(texts)
    name = f"measured/{key}"
    vectors = torch.empty(0)

    def all_of_it() -> dict[str, torch.Tensor]:
        nonlocal vectors
        vectors = batches.joined(count, encode, f"{name}/encoded", options.batch)
        other = vectors.roll(1, 0)
        return {
            "decoded": batches.joined(count, decode, f"{name}/decoded", options.batch),
            "nll": batches.joined(count, lambda rows: losses(rows, vectors), f"{name}/nll", options.batch),
            "nll_shuffled": batches.joined(count, lambda rows: losses(rows, other), f"{name}/shuffled", options.batch),
            "vectors": vectors.flatten(1),
        }

    found = context.stage(name, all_of_it)
    return Measured(found["decoded"], wanted, found["nll"], found["nll_shuffled"], found["vectors"])


def expected(texts: Texts, end: int | None) -> torch.Tensor:
    """What should be decoded, `[n, T]`: each text with its end, if the model has one, and −1 behind that."""
    ids, mask = with_end(texts.ids, texts.mask, end)
    return torch.where(mask.bool(), ids, -1)


def surprisal(subject: Subject, texts: Texts, end: int | None, context: Context, batches: Batches) -> torch.Tensor:
    """`−log p` of each text, with its end, under the model as it is, in nats, `[n]`: what "lossless" has to hold."""

    def of(rows: slice) -> torch.Tensor:
        part = texts[rows]
        return _of_subject(subject, torch.zeros(len(part), 0, dtype=torch.long), part.ids, part.mask, end).sum(-1)

    return context.stage("surprisal", lambda: {"nats": batches.joined(len(texts), of, "surprisal", 32)})["nats"]


def _of_subject(
    subject: Subject, before: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, end: int | None
) -> torch.Tensor:
    """`−log p` of each token of texts behind others, by the subject itself, `[n, T]` on the CPU."""
    first = torch.tensor(corpus.start(subject)).expand(len(ids), -1)
    wanted, counted = with_end(ids, mask, end)
    whole = torch.cat([first, before, ids], 1)
    seen = torch.cat([torch.ones_like(whole[:, : whole.shape[1] - ids.shape[1]]), mask], 1)
    given = None if bool(seen.all()) else seen
    logits = subject.capture(whole, ["logits"], given)["logits"][:, whole.shape[1] - ids.shape[1] - 1 :].cpu()
    return nll(logits.float() if logits.dtype != torch.float64 else logits, wanted, counted)


def memory(
    model: OneWord,
    subject: Subject,
    texts: Texts,
    start: list[int],
    options: OneWordAutoencoderOptions,
    context: Context,
    batches: Batches,
    key: str,
) -> torch.Tensor:
    """Nats of each segment after the first, all texts together, given what came before in several ways, and its tokens:
    `[segments, ways + 1]`.

    The ways are `MEMORIES`, by what decodes, and `AS_IT_WAS`, by the model before any training.
    """
    device, size, count = model.slots.device, options.segment or 1, len(texts)
    vectors = torch.empty(0)

    def encode(rows: slice) -> torch.Tensor:
        part = texts[rows]
        with torch.no_grad():
            found = encoded(model, part.ids.to(device), part.mask.to(device), size)
        # A text that has ended keeps its vectors.
        return torch.stack([*found, *found[-1:] * (segments + 1 - len(found))], 1)

    def of(rows: slice) -> torch.Tensor:
        part = texts[rows]
        ids, mask = (each.to(device) for each in (part.ids, part.mask))
        sums = torch.zeros(1, segments, len(MEMORIES) + len(AS_IT_WAS) + 1, dtype=torch.float64)
        with torch.no_grad():
            for number in range(1, -(-ids.shape[1] // size)):
                goes_on, next_ids, kept = segment_at(ids, mask, number, size)
                own, other = torch.arange(count)[rows][goes_on.cpu()], others(number)[rows][goes_on.cpu()]
                given = contexts(ids, goes_on, number, start, model, options)
                logits = [
                    model.continued(vectors[own, number - 1], next_ids, kept),
                    model.continued(vectors[other, number - 1], next_ids, kept),
                    *(model.plain(before, next_ids, kept) for before in given),
                ]
                values = [nll(each, next_ids, kept) for each in logits]
                before = ids[goes_on, : number * size].cpu()
                for kept_before in (before[:, -model.vectors :], before[:, :0], before):
                    values.append(_of_subject(subject, kept_before, next_ids.cpu(), kept.cpu(), None))
                sums[0, number - 1, :-1] = torch.stack([value.double().sum().cpu() for value in values])
                sums[0, number - 1, -1] = kept.sum()
        return sums

    def others(number: int) -> torch.Tensor:
        """For each text another that goes on as well, or, where there is none, any other, `[n]`."""
        found = torch.arange(count)
        rows = (texts.lengths > number * size).nonzero()[:, 0]
        found[rows] = rows.roll(1) if len(rows) > 1 else (rows + 1) % count
        return found

    segments = -(-texts.ids.shape[1] // size) - 1

    def all_of_it() -> dict[str, torch.Tensor]:
        nonlocal vectors
        vectors = batches.joined(count, encode, f"memory/{key}/encoded", options.batch)
        return {"sums": batches.joined(count, of, f"memory/{key}", options.batch)}

    return context.stage(f"memory/{key}", all_of_it)["sums"].sum(0)
