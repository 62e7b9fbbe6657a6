"""What is left of a model's predictions when a site's activations are replaced by their reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from probekit import AnalysisError
from probekit_plugins.autoencoder.through import Reconstruct, replaced
from probekit_plugins.batches import Batches
from probekit_plugins.divergence import kl_of_logits
from probekit_plugins.exact_inverter.tolerance import check_causal
from probekit_plugins.head import predicted_tokens

if TYPE_CHECKING:
    from probekit import Context, Subject

# Logits `[documents, positions, V]` that are held of one forward pass, and tokens in it, padding among them.
MOST_VALUES = 2**24
MOST_TOKENS = 2048
# Nats that an ablation has to cost, so that what is recovered of them is no ratio of rounding errors.
LEAST_GAP = 0.01

Row = dict[str, float | int | None]


@dataclass(frozen=True)
class Spliced:
    """The figures of each autoencoder by its name, and the sums that they follow from, or the reason why there are
    none.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    sums: torch.Tensor | None = field(default=None, compare=False)
    reason: str | None = None


def spliced(
    subject: Subject,
    site: str,
    autoencoders: Mapping[str, Reconstruct],
    documents: Sequence[Sequence[int]],
    skip_first: int,
    mean: torch.Tensor,
    context: Context,
    batches: Batches | None = None,
) -> Spliced:
    """Figures of each autoencoder on these documents (token ids): one forward pass of each, and three for all of them.

        CE = −mean log p(x_{t+1} | x_{≤t})       in nats, clean, with x̂ spliced in at the site, and ablated
        loss_recovered = (CE_ablated − CE_spliced) / (CE_ablated − CE_clean)
        kl = mean KL(p_clean ‖ p_spliced)        in nats per token
        agreement                                share of tokens with the same likeliest next token

    Ablated is the site's activation replaced by zero, or by the `mean`, `[d]`. All means are over the same positions:
    those from `skip_first` on that are followed by a token; the others keep their own activation. Where an ablation
    costs less than 0.01 nats, the loss recovered is None. Rows have `tokens`, `ce_clean`, `ce_spliced`, `ce_zero`,
    `ce_mean`, `loss_recovered_zero`, `loss_recovered_mean`, `kl` and `agreement`.

    Raises AnalysisError if logits are not finite.
    """
    scored = predicted_tokens(subject)
    documents = sorted((each for each in documents if _counted(each, skip_first, scored).any()), key=len)
    if reason := _reason(subject, site, documents, len(mean)):
        return Spliced(reason=reason)
    conditions: dict[str, Reconstruct] = {
        "": lambda x: x,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x).expand_as(x),
        # Named so that no autoencoder has the name of an ablation.
        **{f"/{name}": reconstruct for name, reconstruct in autoencoders.items()},
    }
    batches = batches or Batches(context)
    label = f"{site}/spliced/{', '.join(autoencoders)}"
    parts = []
    with context.progress(f"{site}, spliced in", len(documents)) as progress:
        for number, group in enumerate(_together(subject, site, documents)):
            length = len(group[-1])
            rows = max(1, min(MOST_TOKENS // length, MOST_VALUES // (length * subject.vocabulary)))

            def of(chosen: slice, number: int = number, group: Sequence[Sequence[int]] = group) -> torch.Tensor:
                def sums() -> dict[str, torch.Tensor]:
                    return {"sums": _sums(subject, site, conditions, group[chosen], skip_first, scored)}

                found = context.stage(f"{label}/{number}/{chosen.start} to {chosen.stop}", sums)["sums"]
                progress.step(chosen.stop - chosen.start)
                return found

            parts += batches.parts(len(group), of, f"{label}/{number}", rows)
    sums = torch.stack(parts).sum(0)
    return Spliced(figures(sums, list(autoencoders)), sums)


def figures(sums: torch.Tensor, names: Sequence[str]) -> dict[str, Row]:
    """The figures of each autoencoder, of sums over all documents, `[3 + autoencoders, 4]`: clean, with zero and with
    the mean in place of the activation, and with each autoencoder; as `spliced` says them.
    """
    clean, zero, mean, *others = sums.tolist()
    return {name: _row(clean, zero, mean, each) for name, each in zip(names, others, strict=True)}


def _reason(subject: Subject, site: str, documents: Sequence[Sequence[int]], width: int) -> str | None:
    """Why nothing can be spliced in, or None."""
    what = "What the reconstruction does to the model's predictions is not measured"
    if not subject.has_logits:
        return f"{what}: this model has no logits."
    if not documents:
        return f"{what}: no held-out document has a token to predict after the positions that are left out."
    ids, _ = subject.batch(documents[:1])
    ids = ids[:, : max(2, min(ids.shape[1], 8))] if subject.anatomy.sequence is None else ids
    try:
        check_causal(subject, "logits", ids[0], subject.capture(ids, ["logits"])["logits"][0])
    except AnalysisError:
        return f"{what}: this model's logits depend on tokens that come later, so that they predict no next token."
    shapes = []

    def note(activation: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(activation.shape))
        return activation

    axes = subject.axes(site)
    if "batch" not in axes:
        return f"{what}: the activation at {site} is [{', '.join(map(str, axes))}], of one prompt at a time."
    twice = ids.expand(2, -1)
    with subject.edit(site, note):
        subject.capture(twice, ["logits"])
    if not shapes:
        return f"{what}: {site} does not run before the logits."
    if set(shapes) != {(*twice.shape, width)}:
        return (
            f"{what}: for two prompts of {ids.shape[1]} tokens the activation at {site} is {list(shapes[0])}, and not "
            f"{[*twice.shape, width]} ([batch, sequence, width])."
        )
    return None


def _together(subject: Subject, site: str, documents: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    """Documents that may stand in one batch: all, or those of one length where padding changes what a prompt has."""
    if subject.takes_padding([site, "logits"]):
        return [documents]
    groups: dict[int, list[Sequence[int]]] = {}
    for document in documents:
        groups.setdefault(len(document), []).append(document)
    return list(groups.values())


def _counted(document: Sequence[int], skip_first: int, scored: int) -> torch.Tensor:
    """At which positions of a document the next token is predicted and has a logit, `[T]`."""
    following = torch.tensor([*document[1:], scored])
    return (torch.arange(len(document)) >= skip_first) & (following < scored)


@torch.no_grad()
def _sums(
    subject: Subject,
    site: str,
    conditions: Mapping[str, Reconstruct],
    documents: Sequence[Sequence[int]],
    skip_first: int,
    scored: int,
) -> torch.Tensor:
    """Sums over one batch, `[conditions, 4]`: tokens, negative log-likelihood, KL from the clean ones, agreement."""
    ids, mask = subject.batch(documents)
    shown = mask.bool()
    inside = shown & (torch.arange(ids.shape[1], device=ids.device) >= skip_first)
    counted = torch.zeros_like(shown)
    for row, document in zip(counted, documents, strict=True):
        row[: len(document)] = _counted(document, skip_first, scored).to(row.device)
    targets = ids.roll(-1, 1)[counted]
    found: list[list[float]] = []
    clean = torch.empty(0)
    for name, reconstruct in conditions.items():

        def edit(activation: torch.Tensor, reconstruct: Reconstruct = reconstruct) -> torch.Tensor:
            return replaced(activation, reconstruct, inside)

        with subject.edit(site, edit) if name else nullcontext():
            logits = subject.capture(ids, ["logits"], None if bool(shown.all()) else mask)["logits"]
        logits = logits[counted.to(logits.device)][:, :scored].float()
        subject.check_finite(logits, f"The logits with the reconstruction at {site}" if name else "The logits")
        clean = clean if name else logits
        likelihood = functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
        same = logits.argmax(-1) == clean.argmax(-1)
        figures = (likelihood, kl_of_logits(clean, logits), same)
        found.append([len(targets), *(float(each.double().sum()) for each in figures)])
    return torch.tensor(found, dtype=torch.float64)


def _row(*of: Sequence[float]) -> Row:
    """The figures of one autoencoder, of sums with nothing replaced, with zero, with the mean, and with it."""
    tokens, _, divergence, same = of[-1]
    clean, zero, mean, spliced = (likelihood / tokens for _, likelihood, _, _ in of)

    def recovered(ablated: float) -> float | None:
        return (ablated - spliced) / (ablated - clean) if ablated - clean >= LEAST_GAP else None

    return {
        "tokens": int(tokens),
        "ce_clean": clean,
        "ce_spliced": spliced,
        "ce_zero": zero,
        "ce_mean": mean,
        "loss_recovered_zero": recovered(zero),
        "loss_recovered_mean": recovered(mean),
        "kl": max(0.0, divergence / tokens),  # below 0 by rounding alone
        "agreement": same / tokens,
    }
