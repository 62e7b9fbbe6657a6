"""Figures of an inversion: what was recovered, how close the descent came, and what the model makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins.gradient_inverter.next_tokens import Asked, NextTokens, TruncatedNextTokens, Verdicts

if TYPE_CHECKING:
    from probekit import Prompt, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.gradient_inverter import GradientInverterOptions
    from probekit_plugins.gradient_inverter.ranks import Ranks

Scalar = str | int | float | bool | None


@dataclass
class Figures:
    """One prompt of T tokens at one site: R restarts, S recorded steps, k candidates a position."""

    losses: torch.Tensor  # [N + 1, R]
    recorded_steps: torch.Tensor  # [S]
    recorded_ids: torch.Tensor  # [S, R, T]
    embeddings: torch.Tensor  # [R, T, d], e_N
    target_embeddings: torch.Tensor  # [T, d], e*
    decoded_embeddings: torch.Tensor  # [R, T, d], E[decoded]
    top_k_ids: torch.Tensor  # [R, T, k]
    discrete_losses: torch.Tensor  # [R], of E[decoded]
    rescored_ids: torch.Tensor | None  # [R, T]
    rescored_losses: torch.Tensor | None  # [R], of E[rescored]
    shifted_losses: dict[float, torch.Tensor]  # σ → [R], m
    shifted_embeddings: dict[float, torch.Tensor]  # σ → [R, T, d], e′

    @property
    def selected(self) -> int:
        """The restart whose tokens, re-scored if they were, have the least discrete loss: chosen without the prompt."""
        return int((self.discrete_losses if self.rescored_losses is None else self.rescored_losses).argmin())

    @property
    def m(self) -> float:
        """The median loss of the prompt's embeddings under the first shift."""
        return float(next(iter(self.shifted_losses.values())).median())


def store(
    result: Result,
    figures: Figures,
    subject: Subject,
    prompt: Prompt,
    number: int,
    site: str,
    options: GradientInverterOptions,
    asked: Asked | None,
    ranks: Ranks,
    batches: Batches,
) -> None:
    """Everything that one inversion found, as tensors, token sequences and table rows by restart, rank and shift."""
    truth = prompt.input_ids[0].to(figures.top_k_ids.device)
    right = figures.top_k_ids[..., 0] == truth
    prefix = f"{number}/{site}"
    result.tensors |= {
        f"{prefix}/losses": figures.losses,
        f"{prefix}/recorded_steps": figures.recorded_steps,
        f"{prefix}/recorded_ids": figures.recorded_ids,
        f"{prefix}/recorded_accuracy": (figures.recorded_ids == truth).float().mean(-1),
        f"{prefix}/right": right.float().mean(0),
        f"{prefix}/embeddings": figures.embeddings,
        f"{prefix}/top_k_ids": figures.top_k_ids,
    }
    labels: dict[str, Scalar] = {"prompt": number, "site": site}
    result.sequences.setdefault("prompt", []).append(TokenSequence(truth.tolist(), prompt.tokens, {**labels}))
    for restart in range(right.shape[0]):
        for rank in range(figures.top_k_ids.shape[-1]):
            ids = figures.top_k_ids[restart, :, rank].tolist()
            result.sequences.setdefault("recovered", []).append(
                TokenSequence(ids, subject.tokens(ids), {**labels, "restart": restart, "rank": rank})
            )
    if figures.rescored_ids is not None:
        result.tensors[f"{prefix}/rescored_ids"] = figures.rescored_ids
        for restart, ids in enumerate(figures.rescored_ids.tolist()):
            result.sequences.setdefault("rescored", []).append(
                TokenSequence(ids, subject.tokens(ids), {**labels, "restart": restart})
            )
    for step, ids in zip(
        figures.recorded_steps.tolist(), figures.recorded_ids[:, figures.selected].tolist(), strict=True
    ):
        result.sequences.setdefault("trajectory", []).append(
            TokenSequence(ids, subject.tokens(ids), {**labels, "restart": figures.selected, "step": step})
        )
    whole = NextTokens(asked, subject, prompt, batches) if asked else None
    truncated = None
    if options.head != "none":
        truncated = TruncatedNextTokens(subject, prompt, site, options, figures.target_embeddings, batches)
    rows = {
        "restarts": restart_rows(figures, subject, truth, _verdicts(figures, whole, truncated)),
        "shifts": _shift_rows(figures, whole, truncated),
        "ranks": ranks.rows(figures.top_k_ids, truth),
    }
    for name, found in rows.items():
        result.tables.setdefault(name, []).extend({**labels, **row} for row in found)


def _verdicts(figures: Figures, whole: NextTokens | None, truncated: TruncatedNextTokens | None) -> dict[str, Verdicts]:
    """Whether each restart's outcome keeps the next token, in every form that it has; None where nobody was asked."""
    tokens = figures.top_k_ids[..., 0]
    unknown: Verdicts = [None] * len(tokens)
    return {
        "next_token_of_embeddings": whole.of_embeddings(figures.embeddings) if whole else unknown,
        "next_token_of_tokens": whole.of_tokens(tokens) if whole else unknown,
        "next_token_of_text": whole.of_texts(tokens) if whole else unknown,
        "truncated_next_token_of_embeddings": truncated.of_embeddings(figures.embeddings) if truncated else unknown,
        "truncated_next_token_of_tokens": truncated.of_embeddings(figures.decoded_embeddings) if truncated else unknown,
    }


def restart_rows(
    figures: Figures, subject: Subject, truth: torch.Tensor, verdicts: dict[str, Verdicts]
) -> list[dict[str, Scalar]]:
    """The table's row of each restart, for the prompt's tokens `[T]`."""
    right = figures.top_k_ids[..., 0] == truth
    in_top_k = (figures.top_k_ids == truth[:, None]).any(-1)
    apart = figures.embeddings - figures.target_embeddings
    recorded_right = (figures.recorded_ids == truth).all(-1)
    every_step = torch.arange(len(figures.losses))
    rows: list[dict[str, Scalar]] = []
    for restart in range(right.shape[0]):
        final, after = float(figures.losses[-1, restart]), float(figures.discrete_losses[restart])
        wrong = int((~right[restart]).sum())
        rows.append(
            {
                "restart": restart,
                "selected": restart == figures.selected,
                "loss": final,
                "shifted_loss": figures.m,
                "loss_ratio": ratio(final, figures.m),
                "token_accuracy": float(right[restart].float().mean()),
                "top_k_accuracy": float(in_top_k[restart].float().mean()),
                "exact": wrong == 0,
                "steps_to_closer": first_step(figures.losses[:, restart] < figures.m, every_step),
                "steps_to_exact": first_step(recorded_right[:, restart], figures.recorded_steps),
                "discrete_loss": after,
                "discrete_loss_ratio": ratio(after, figures.m),
                **_rescored_row(figures, subject, truth, restart),
                "distance_l1": float(apart[restart].abs().sum()),
                "distance_l2": float(apart[restart].norm()),
                "one_hot_distance_l1": float(2 * wrong),
                **{name: of_restarts[restart] for name, of_restarts in verdicts.items()},
                "text": subject.text(figures.top_k_ids[restart, :, 0]),
            }
        )
    return rows


def _rescored_row(figures: Figures, subject: Subject, truth: torch.Tensor, restart: int) -> dict[str, Scalar]:
    """What a restart's row says of its re-scored tokens; nothing where there are none."""
    if figures.rescored_ids is None or figures.rescored_losses is None:
        return {}
    ids, loss = figures.rescored_ids[restart], float(figures.rescored_losses[restart])
    right = ids == truth
    return {
        "rescored_token_accuracy": float(right.float().mean()),
        "rescored_exact": bool(right.all()),
        "rescored_discrete_loss": loss,
        "rescored_discrete_loss_ratio": ratio(loss, figures.m),
        "rescored_text": subject.text(ids),
    }


def _shift_rows(
    figures: Figures, whole: NextTokens | None, truncated: TruncatedNextTokens | None
) -> list[dict[str, Scalar]]:
    rows: list[dict[str, Scalar]] = []
    for sigma, losses in figures.shifted_losses.items():
        shifted = figures.shifted_embeddings[sigma]
        rows.append(
            {
                "sigma": sigma,
                "m_median": float(losses.median()),
                "m_min": float(losses.min()),
                "m_max": float(losses.max()),
                "closer_restarts": float((figures.losses[-1] < losses.median()).float().mean()),
                "next_token_kept": _share(whole.of_embeddings(shifted) if whole else []),
                "truncated_next_token_kept": _share(truncated.of_embeddings(shifted) if truncated else []),
            }
        )
    return rows


def _share(verdicts: Verdicts) -> float | None:
    """The share that holds of those that are known, or None."""
    known = [float(verdict) for verdict in verdicts if verdict is not None]
    return mean(known) if known else None


def first_step(held: torch.Tensor, steps: torch.Tensor) -> int | None:
    """The first of these steps at which something held, `[S]`, or None."""
    where = held.nonzero()
    return int(steps[where[0, 0]]) if len(where) else None


def ratio(value: float, reference: float) -> float | None:
    """`value / reference`, or None where the reference is 0."""
    return value / reference if reference else None
