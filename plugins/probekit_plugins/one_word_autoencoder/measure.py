"""Figures of an autoencoder on texts that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit_plugins import corpus
from probekit_plugins.continued import continued
from probekit_plugins.head import predicted_tokens
from probekit_plugins.one_word_autoencoder.objective import (
    contexts,
    encoded,
    nll,
    reconstruction,
    segment_at,
    with_end,
)
from probekit_plugins.one_word_autoencoder.repulsion import coding_rate, mean_cosine

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.corpus import Texts
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions
    from probekit_plugins.one_word_autoencoder.model import OneWord


@dataclass(frozen=True)
class Measured:
    """Of each text: what was decoded and what should be, `[n, T]`, with its mask; `−log p` of the text given its own
    vectors and given another text's, in nats, `[n]`; and the vectors `[n, k d]`. All on the CPU.
    """

    decoded: torch.Tensor
    wanted: torch.Tensor
    mask: torch.Tensor
    nll: torch.Tensor
    nll_shuffled: torch.Tensor
    vectors: torch.Tensor

    @property
    def exact(self) -> torch.Tensor:
        """Which texts come back exactly, from the first token to the end, `[n]`."""
        return self._exact(self.decoded)

    @property
    def right(self) -> torch.Tensor:
        """Which tokens of the texts are decoded at their place, `[n, T]`."""
        return (self.decoded == self.wanted) & self.mask.bool()

    def figures(self, distortion: float) -> dict[str, float]:
        """Shares, nats a token, and how the vectors are spread."""
        tokens = self.mask.sum().item()
        return {
            "exact": self.exact.double().mean().item(),
            # Greedy decoding of another text's vectors gives that text's decoding.
            "exact_shuffled": self._exact(self.decoded.roll(1, 0)).double().mean().item(),
            "token_accuracy": self.right.sum().item() / tokens,
            "nll": self.nll.double().sum().item() / tokens,
            "nll_shuffled": self.nll_shuffled.double().sum().item() / tokens,
            "cosine": mean_cosine(self.vectors),
            "coding_rate": coding_rate(self.vectors.double(), distortion).item(),
        }

    def _exact(self, decoded: torch.Tensor) -> torch.Tensor:
        return ((decoded == self.wanted) | ~self.mask.bool()).all(-1)


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
    device, wanted = model.slots.device, with_end(texts.ids, texts.mask, end)
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
        found = continued(next_logits, nothing, wanted[0].shape[1], end)
        missing = wanted[0].shape[1] - found.shape[1]
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
    return Measured(found["decoded"], *wanted, found["nll"], found["nll_shuffled"], found["vectors"])


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


MEMORIES = ("memory", "another text's memory", "truncation", "no memory")
AS_IT_WAS = ("truncation, as it was", "no memory, as it was", "whole context, as it was")


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
    """Nats a token of each segment after the first, given what came before in several ways, `[segments, ways]`.

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

    sums = context.stage(f"memory/{key}", all_of_it)["sums"].sum(0)
    return sums[:, :-1] / sums[:, -1:].clamp(min=1)
