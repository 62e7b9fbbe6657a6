"""What is minimised: the reconstruction of texts from their vectors, segment by segment, and the repulsion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from probekit_plugins.one_word_autoencoder.repulsion import repulsion

if TYPE_CHECKING:
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions, Repulsion
    from probekit_plugins.one_word_autoencoder.model import OneWord


def with_end(ids: torch.Tensor, mask: torch.Tensor, end: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts `[n, T]` and their mask, with the token that ends a text behind each; the same where there is none."""
    if end is None:
        return ids, mask
    ids, mask = torch.cat([ids, ids[:, :1]], 1), torch.cat([mask, mask[:, :1]], 1)
    lengths = mask[:, :-1].sum(-1, keepdim=True)
    places = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(places == lengths, end, ids), (places <= lengths).to(mask)


def nll(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`−log p` of each token in nats, `[n, T]`, 0 where the mask is; logits `[n, ≥ T, V]`."""
    found = cross_entropy(logits[:, : ids.shape[1]].transpose(1, 2), ids, reduction="none")
    return found * mask.to(found)


def encoded(
    model: OneWord, ids: torch.Tensor, mask: torch.Tensor, segment: int | None, truncate: int | None = None
) -> list[torch.Tensor]:
    """The vectors after each segment, E_1 to E_T, each `[n, k, d]`; a whole text is one where `segment` is None.

    With `truncate`, gradients end at every so-manieth of them, as in AutoCompressors (Chevalier et al., 2305.14788).
    """
    found: list[torch.Tensor] = []
    size = segment or max(1, ids.shape[1])
    for number, first in enumerate(range(0, ids.shape[1], size)):
        before = found[-1] if found else None
        if before is not None and truncate is not None and number % truncate == 0:
            before = before.detach()
        found.append(model.encode(ids[:, first : first + size], mask[:, first : first + size], before))
    return found


def reconstruction(
    model: OneWord, vectors: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, end: int | None
) -> torch.Tensor:
    """`−log p(text_i | E, text_{<i})`, `[n, T]`, with the token that ends the text where the model has one."""
    return nll(model.decode(vectors, ids, mask), *with_end(ids, mask, end))


def loss(
    model: OneWord,
    ids: torch.Tensor,
    mask: torch.Tensor,
    kind: Repulsion,
    start: list[int],
    end: int | None,
    options: OneWordAutoencoderOptions,
    step: int,
) -> torch.Tensor:
    """`L_2 + w L_1` of a batch, or one of the two in turn; the mean over all tokens that are decoded, in nats."""
    found = encoded(model, ids, mask, options.segment, options.truncate)
    alone = kind != "none" and options.losses == "alternated"
    total = ids.new_zeros((), dtype=found[-1].dtype)
    if not (alone and step % 2):
        total = total + _decoded(model, found, ids, mask, end, options)
        if len(found) > 1 and options.continuation:
            total = total + options.continuation * _continuation(model, found, ids, mask, start, options)
    if kind != "none" and not (alone and step % 2 == 0):
        total = total + options.repulsion_weight * repulsion(kind, found[-1].flatten(1), options)
    return total


def _decoded(
    model: OneWord,
    found: list[torch.Tensor],
    ids: torch.Tensor,
    mask: torch.Tensor,
    end: int | None,
    options: OneWordAutoencoderOptions,
) -> torch.Tensor:
    """The reconstruction of what was read until then, the mean over the segments after which it is decoded."""
    size = options.segment or ids.shape[1]
    terms = []
    for number, vectors in enumerate(found):
        last = number == len(found) - 1
        if not last and options.decoded == "last":
            continue
        # All texts at the end; before it, those that go on, since the others are then what they will be.
        rows = slice(None) if last else mask[:, (number + 1) * size].bool()
        read = slice(0, (number + 1) * size)
        if last or bool(mask[:, (number + 1) * size].any()):
            each = reconstruction(model, vectors[rows], ids[rows, read], mask[rows, read], end)
            count = with_end(ids[rows, read], mask[rows, read], end)[1].sum()
            terms.append(each.sum() / count)
    return torch.stack(terms).mean()


def _continuation(
    model: OneWord,
    found: list[torch.Tensor],
    ids: torch.Tensor,
    mask: torch.Tensor,
    start: list[int],
    options: OneWordAutoencoderOptions,
) -> torch.Tensor:
    """The mean NLL of next segments given the vectors before them; and where what decodes is trained, given the last
    tokens before them, or nothing, as well, so that these are known to it when they are compared.
    """
    terms = []
    for number in range(1, len(found)):
        goes_on, part, kept = segment_at(ids, mask, number, options.segment or 1)
        if not bool(goes_on.any()):
            break
        logits = [model.continued(found[number - 1][goes_on], part, kept)]
        if model.trains_decoder:
            others = contexts(ids, goes_on, number, start, model, options)
            logits += [model.plain(before, part, kept) for before in others]
        terms.append(torch.stack([nll(each, part, kept).sum() / kept.sum() for each in logits]).mean())
    return torch.stack(terms).mean() if terms else ids.new_zeros((), dtype=found[-1].dtype)


def segment_at(
    ids: torch.Tensor, mask: torch.Tensor, number: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which texts `[n]` have a segment of this number, from 0, and its tokens and mask."""
    place = slice(number * size, (number + 1) * size)
    goes_on = mask[:, number * size].bool()
    return goes_on, ids[goes_on, place], mask[goes_on, place]


def contexts(
    ids: torch.Tensor,
    goes_on: torch.Tensor,
    number: int,
    start: list[int],
    model: OneWord,
    options: OneWordAutoencoderOptions,
) -> list[torch.Tensor]:
    """What else may stand before a segment, token ids: the last tokens before it, as many as there are vectors
    (truncation), and nothing but what begins a text.
    """
    first = number * (options.segment or 1)
    rows = ids[goes_on]
    beginning = torch.tensor(start, device=ids.device).expand(len(rows), -1)
    return [torch.cat([beginning, rows[:, max(0, first - model.vectors) : first]], 1), beginning]
