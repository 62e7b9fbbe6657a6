"""The inversion itself: restarts as a batch, descended together with independent losses, decoded and scored at the
end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, Result, TokenSequence, UsageError

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.gradient_inverter import GradientInverterOptions

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Inversion:
    """One prompt at one site: R restarts of T tokens, S recorded steps, k candidates a position."""

    losses: torch.Tensor  # [N + 1, R], before each step and after the last
    recorded_steps: list[int]  # S
    recorded_ids: torch.Tensor  # [S, R, T]
    learning_rate: float  # η as used
    start_sigma: float  # of the starting noise, as used
    embeddings: torch.Tensor  # [R, T, d]
    top_k_ids: torch.Tensor  # [R, T, k]
    shifted_losses: torch.Tensor  # [R], m for as many shifted inputs
    discrete_losses: torch.Tensor  # [R]
    selected: int  # the restart with the least discrete loss: chosen without knowing the prompt


def run(subject: Subject, prompts: Sequence[Prompt], options: GradientInverterOptions, context: Context) -> Result:
    sites = subject.expand_sites(options.sites)
    if options.top_k > subject.vocabulary:
        raise UsageError(f"top_k is {options.top_k}, but the vocabulary has {subject.vocabulary} tokens.")
    result = Result()
    for number, prompt in enumerate(prompts):
        for site in sites:
            inversion = invert(subject, prompt, site, options, context, f"{number}/{site}")
            _store(result, inversion, subject, prompt, number, site)
    _summarise(result, sites, options)
    return result


def invert(
    subject: Subject, prompt: Prompt, site: str, options: GradientInverterOptions, context: Context, label: str
) -> Inversion:
    """Invert one site for one prompt. Raises AnalysisError if the target or the descent is not finite."""
    layer_map = _map_with_head(subject, site, prompt, options)
    target_embeddings = subject.embed(prompt.input_ids).float()
    with torch.no_grad():
        target = layer_map(target_embeddings)
    subject.check_finite(target, f"The activation at {site}")
    loss_of = _loss(layer_map, target, options.loss)

    generator = context.generator(label)
    shape = (options.restarts, *target_embeddings.shape[1:])
    spread = float(subject.embedding_matrix.std())
    sigma = spread if options.start_sigma is None else options.start_sigma
    noise = (options.start_mean + sigma * torch.randn(shape, generator=generator)).to(target_embeddings)
    shift = (options.shift_sigma * torch.randn(shape, generator=generator)).to(target_embeddings)
    start = options.noise_share * noise + options.target_share * target_embeddings
    with torch.no_grad():
        shifted_losses = loss_of(target_embeddings + shift)

    rate = options.learning_rate or (spread / 4 if options.optimizer == "adam" else 0.2)
    losses, recorded, embeddings = descend(loss_of, start, rate, options, context, site)
    recorded_ids = torch.stack(
        [subject.decode(snapshot, top_k=1, decoder=options.decoder)[..., 0] for _, snapshot in recorded]
    )
    top_k_ids = subject.decode(embeddings, top_k=options.top_k, decoder=options.decoder)
    with torch.no_grad():
        discrete_losses = loss_of(subject.embed(top_k_ids[..., 0]).float())
    return Inversion(
        losses=losses,
        recorded_steps=[step for step, _ in recorded],
        recorded_ids=recorded_ids,
        learning_rate=rate,
        start_sigma=sigma,
        embeddings=embeddings,
        top_k_ids=top_k_ids,
        shifted_losses=shifted_losses,
        discrete_losses=discrete_losses,
        selected=int(discrete_losses.argmin()),
    )


def descend(
    loss_of: Map, start: torch.Tensor, rate: float, options: GradientInverterOptions, context: Context, site: str
) -> tuple[torch.Tensor, list[tuple[int, torch.Tensor]], torch.Tensor]:
    """`e_{n+1} = e_n − η_n ∇ loss(e_n)` for every restart at once.

    Returns the losses `[N + 1, R]`, snapshots of the embeddings every `record_every` steps, and the last embeddings.
    """
    embeddings = start.clone().requires_grad_(True)
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.SGD
    optimizer = kind([embeddings], lr=rate)
    losses: list[torch.Tensor] = []
    recorded: list[tuple[int, torch.Tensor]] = []

    def record(step: int) -> None:
        if not bool(torch.isfinite(embeddings).all()):
            raise AnalysisError(
                f"The descent at {site} left the finite numbers by step {step}; lower the learning rate "
                f"(-o learning_rate={rate / 10:.2g})."
            )
        recorded.append((step, embeddings.detach().clone()))

    with context.progress(site, options.steps) as progress:
        for step in range(options.steps):
            if step % options.record_every == 0:
                record(step)
            optimizer.param_groups[0]["lr"] = rate_at(step, rate, options)
            loss = loss_of(embeddings)
            # The restarts share nothing, so the gradient of the sum is each one's own.
            (embeddings.grad,) = torch.autograd.grad(loss.sum(), embeddings)
            optimizer.step()
            losses.append(loss.detach())
            progress.step(loss=losses[-1].min)
    record(options.steps)
    with torch.no_grad():
        losses.append(loss_of(embeddings))
    return torch.stack(losses), recorded, embeddings.detach()


def rate_at(step: int, rate: float, options: GradientInverterOptions) -> float:
    """η_n: constant, or falling from η at the first step to η/10 at the last, linearly or along a half cosine."""
    share = step / max(1, options.steps - 1)
    if options.schedule == "linear":
        return rate * (1 - 0.9 * share)
    if options.schedule == "cosine":
        return rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
    return rate


def _map_with_head(subject: Subject, site: str, prompt: Prompt, options: GradientInverterOptions) -> Map:
    ids = prompt.input_ids if subject.conditioned_on_ids else None
    layer_map = subject.layer_map(site, input_ids=ids)
    if options.head == "none":
        return layer_map
    with_norm = options.head == "model"
    return lambda embeddings: subject.unembed(layer_map(embeddings), norm=with_norm)


def _loss(layer_map: Map, target: torch.Tensor, kind: str) -> Map:
    """`‖O(e) − t‖` for each restart, in L1 or L2, `[R, T, d]` → `[R]`."""
    order = 1 if kind == "l1" else 2

    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        difference = (layer_map(embeddings) - target).flatten(1).float()
        norms: torch.Tensor = torch.linalg.vector_norm(difference, ord=order, dim=1)
        return norms

    return loss


def _store(result: Result, inversion: Inversion, subject: Subject, prompt: Prompt, number: int, site: str) -> None:
    """Everything that one inversion found, as tensors, token sequences and one table row a restart."""
    truth = prompt.input_ids[0].to(inversion.top_k_ids.device)
    best = inversion.top_k_ids[..., 0]
    right = best == truth
    in_top_k = (inversion.top_k_ids == truth[:, None]).any(-1)
    m = float(inversion.shifted_losses.median())
    prefix = f"{number}/{site}"
    result.tensors |= {
        f"{prefix}/losses": inversion.losses,
        f"{prefix}/recorded_steps": torch.tensor(inversion.recorded_steps),
        f"{prefix}/recorded_ids": inversion.recorded_ids,
        f"{prefix}/recorded_accuracy": (inversion.recorded_ids == truth).float().mean(-1),
        f"{prefix}/right": right.float().mean(0),
        f"{prefix}/embeddings": inversion.embeddings,
        f"{prefix}/top_k_ids": inversion.top_k_ids,
        f"{prefix}/shifted_losses": inversion.shifted_losses,
    }
    result.metrics |= {"learning_rate": inversion.learning_rate, "start_sigma": inversion.start_sigma}
    labels: dict[str, str | int | float | bool | None] = {"prompt": number, "site": site}
    result.sequences.setdefault("prompt", []).append(TokenSequence(truth.tolist(), prompt.tokens, {**labels}))
    for restart in range(best.shape[0]):
        for rank in range(inversion.top_k_ids.shape[-1]):
            ids = inversion.top_k_ids[restart, :, rank].tolist()
            result.sequences.setdefault("recovered", []).append(
                TokenSequence(ids, subject.tokens(ids), {**labels, "restart": restart, "rank": rank})
            )
        final = float(inversion.losses[-1, restart])
        discrete = float(inversion.discrete_losses[restart])
        result.tables.setdefault("restarts", []).append(
            {
                "prompt": number,
                "site": site,
                "restart": restart,
                "selected": restart == inversion.selected,
                "loss": final,
                "shifted_loss": m,
                "loss_ratio": _ratio(final, m),
                "token_accuracy": float(right[restart].float().mean()),
                "top_k_accuracy": float(in_top_k[restart].float().mean()),
                "exact": bool(right[restart].all()),
                "discrete_loss": discrete,
                "discrete_loss_ratio": _ratio(discrete, m),
                "text": subject.text(best[restart]),
            }
        )
    for step, ids in zip(inversion.recorded_steps, inversion.recorded_ids[:, inversion.selected].tolist(), strict=True):
        result.sequences.setdefault("trajectory", []).append(
            TokenSequence(ids, subject.tokens(ids), {**labels, "restart": inversion.selected, "step": step})
        )


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference else None


def _summarise(result: Result, sites: Sequence[str], options: GradientInverterOptions) -> None:
    """Metrics by site over prompts and restarts, and the finding."""
    rows = result.tables["restarts"]
    for site in sites:
        here = [row for row in rows if row["site"] == site]
        accuracy = [float(row["token_accuracy"] or 0) for row in here]
        ratios = [float(row["loss_ratio"]) for row in here if row["loss_ratio"] is not None]
        selected = [row for row in here if row["selected"]]
        result.metrics |= {
            f"{site}/token_accuracy_mean": mean(accuracy),
            f"{site}/token_accuracy_min": min(accuracy),
            f"{site}/token_accuracy_max": max(accuracy),
            f"{site}/token_accuracy_selected": mean(float(row["token_accuracy"] or 0) for row in selected),
            f"{site}/top_k_accuracy_mean": mean(float(row["top_k_accuracy"] or 0) for row in here),
            f"{site}/exact_rate": mean(float(bool(row["exact"])) for row in here),
            f"{site}/loss_ratio_median": median(ratios) if ratios else None,
            f"{site}/closer_than_shifted_rate": mean(float(ratio < 1) for ratio in ratios) if ratios else None,
        }
    shown = [
        f"{site} {result.metrics[f'{site}/token_accuracy_selected']:.0%} "
        f"(all restarts {result.metrics[f'{site}/token_accuracy_mean']:.0%})"
        for site in sites
    ]
    result.finding = (
        f"Tokens recovered by the best of {options.restarts} restarts after {options.steps} steps, chosen by how well "
        f"its tokens reproduce the activation: {', '.join(shown)}."
    )
    if options.target_share:
        result.notes.append(
            f"The starts hold {options.target_share:g} times the prompt's own embeddings, so the accuracy is not that "
            "of an inversion from nothing."
        )
