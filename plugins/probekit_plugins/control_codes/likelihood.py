"""How likely texts are behind prefixes: `−(1/n) Σ log p(x_i | x_{<i}, c)` over a text's own n tokens, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, UsageError
from probekit_plugins.corpus import Texts
from probekit_plugins.exact_inverter.tolerance import check_causal
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.batches import Batches

# Logits that one batch may have at most: 128 MiB in fp32, and as much again for their softmax.
MOST_LOGITS = 1 << 25


def check(subject: Subject) -> None:
    """Raise UsageError with one sentence if the model gives texts no likelihood."""
    if not subject.has_logits:
        raise UsageError("Likelihoods are those of a model that predicts tokens; this one has no logits.")
    if subject.anatomy.sequence is not None:
        raise UsageError(
            f"This model reads exactly {subject.anatomy.sequence} tokens, so that no code can stand before a text; "
            "give a language model."
        )
    ids = subject.check_ids([token % subject.vocabulary for token in range(4)])
    try:
        check_causal(subject, "logits", ids[0], subject.capture(ids, ["logits"])["logits"][0])
    except AnalysisError:
        raise UsageError(
            f"{type(subject.model).__name__} also reads what comes after a token, so what it predicts there is no "
            "likelihood of the text; give a causal model."
        ) from None


def own_log_likelihoods(
    logits: torch.Tensor, ids: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """`Σ log p(x_i | x_{<i})` of each row over the positions from `first` to before `lengths`, `[n]`.

    `logits` `[n, T, V]` are at the tokens `ids` `[n, T]`, padded on the right. `first` is at least 1.
    """
    places = torch.arange(1, ids.shape[1], device=logits.device)
    counted = (places >= first[:, None].to(logits.device)) & (places < lengths[:, None].to(logits.device))
    log_p = at_least_single(logits[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None].to(logits.device))[..., 0]
    return torch.where(counted, log_p, 0).sum(1)


def likelihoods(
    subject: Subject,
    prefixes: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    batches: Batches,
    context: Context,
    key: str,
) -> torch.Tensor:
    """The NLL of every text behind every prefix, in nats per token: `[texts, prefixes]`, fp64.

    `key` names the computation within the analysis. Raises AnalysisError if one is not finite.
    """

    def compute() -> dict[str, torch.Tensor]:
        return {"nll": _computed(subject, prefixes, texts, batches, context, key)}

    found = context.stage(f"likelihood/{key}", compute)["nll"]
    if not bool(found.isfinite().all()):
        raise AnalysisError(
            f"The likelihood of a text ({key}) is not finite, so the model's logits are not; a wider dtype "
            "(--dtype float32) may help."
        )
    return found


def _computed(
    subject: Subject,
    prefixes: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    batches: Batches,
    context: Context,
    key: str,
) -> torch.Tensor:
    pairs = [(text, prefix) for text in range(len(texts)) for prefix in range(len(prefixes))]
    # Rows of one length beside each other are padded least; the longest first, so that memory runs out at once.
    pairs.sort(key=lambda pair: -len(texts[pair[0]]) - len(prefixes[pair[1]]))
    rows = Texts.of([[*prefixes[prefix], *texts[text]] for text, prefix in pairs])
    first = torch.tensor([len(prefixes[prefix]) for _, prefix in pairs])
    most = max(1, MOST_LOGITS // (subject.vocabulary * rows.ids.shape[1]))
    if not subject.takes_padding(["logits"]):
        most = 1
    with context.progress(f"likelihood {key}", len(pairs)) as progress:

        def of(chosen: slice) -> torch.Tensor:
            part = rows[chosen]
            mask = None if bool(part.mask.all()) else part.mask
            with torch.no_grad():
                logits = subject.capture(part.ids, ["logits"], mask)["logits"]
                sums = own_log_likelihoods(logits, part.ids, first[chosen], part.lengths).double().cpu()
            progress.step(len(part))
            return -sums / (part.lengths - first[chosen])

        every = batches.joined(len(pairs), of, f"likelihood/{key}", most)
    found = torch.zeros(len(texts), len(prefixes), dtype=torch.float64)
    text, prefix = torch.tensor(pairs).T
    found[text, prefix] = every
    return found
