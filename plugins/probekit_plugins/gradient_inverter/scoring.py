"""What an inversion measured, as a result keeps it: what was recovered, losses, and what the model makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins.gradient_inverter.figures import selected
from probekit_plugins.gradient_inverter.next_tokens import Asked, NextTokens, TruncatedNextTokens

if TYPE_CHECKING:
    from probekit import Prompt, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.gradient_inverter import GradientInverterOptions
    from probekit_plugins.gradient_inverter.ranks import Nearness

Scalar = str | int | float | bool | None
Tensors = dict[str, torch.Tensor]


@dataclass
class Figures:
    """One prompt of T tokens at one site: R restarts, S recorded steps, k candidates a position, Z shifts."""

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
    shifted_losses: torch.Tensor  # [Z, R], m
    shifted_embeddings: torch.Tensor  # [Z, R, T, d], e′

    def measured(self, truth: torch.Tensor) -> Tensors:
        """What the figures of every restart follow from, for the prompt's tokens `[T]`."""
        return {
            "losses": self.losses,
            "recorded_ids": self.recorded_ids,
            "recorded_accuracy": (self.recorded_ids == truth).float().mean(-1),
            "embeddings": self.embeddings,
            "top_k_ids": self.top_k_ids,
            "discrete_losses": self.discrete_losses,
            "shifted_losses": self.shifted_losses,
        }


def store(
    result: Result,
    figures: Figures,
    subject: Subject,
    prompt: Prompt,
    number: int,
    site: str,
    options: GradientInverterOptions,
    asked: Asked | None,
    nearness: Nearness,
    batches: Batches,
) -> None:
    """Everything that one inversion measured, as tensors and token sequences."""
    truth = prompt.input_ids[0].to(figures.top_k_ids.device)
    tokens = figures.top_k_ids[..., 0]
    kept = {
        **figures.measured(truth),
        "recorded_steps": figures.recorded_steps,
        "right": (tokens == truth).float().mean(0),
        **nearness.of(figures.top_k_ids, truth),
        **_next_tokens(figures, subject, prompt, site, options, asked, batches),
    }
    labels: dict[str, Scalar] = {"prompt": number, "site": site}
    result.sequences.setdefault("prompt", []).append(TokenSequence(truth.tolist(), prompt.tokens, {**labels}))
    add_sequences(result, "recovered", subject, figures.top_k_ids, labels)
    chosen = selected(figures.discrete_losses)
    if figures.rescored_ids is not None and figures.rescored_losses is not None:
        kept |= {"rescored_ids": figures.rescored_ids, "rescored_losses": figures.rescored_losses}
        add_sequences(result, "rescored", subject, figures.rescored_ids[..., None], labels, with_ranks=False)
        chosen = selected(figures.rescored_losses)
    for step, ids in zip(figures.recorded_steps.tolist(), figures.recorded_ids[:, chosen].tolist(), strict=True):
        result.sequences.setdefault("trajectory", []).append(
            TokenSequence(ids, subject.tokens(ids), {**labels, "restart": chosen, "step": step})
        )
    result.tensors |= {f"{number}/{site}/{name}": tensor for name, tensor in kept.items()}
    result.tensors[f"{number}/prompt_embeddings"] = figures.target_embeddings


def add_sequences(
    result: Result,
    name: str,
    subject: Subject,
    ids: torch.Tensor,
    labels: dict[str, Scalar],
    with_ranks: bool = True,
) -> None:
    """The candidates `[R, T, k]` of each restart, by rank; the first with the text that they spell."""
    for restart, of_restart in enumerate(ids.tolist()):
        for rank, row in enumerate(zip(*of_restart, strict=True)):
            here: dict[str, Scalar] = {**labels, "restart": restart, **({"rank": rank} if with_ranks else {})}
            if rank == 0:
                here["text"] = subject.text(row)
            result.sequences.setdefault(name, []).append(TokenSequence(list(row), subject.tokens(row), here))


def _next_tokens(
    figures: Figures,
    subject: Subject,
    prompt: Prompt,
    site: str,
    options: GradientInverterOptions,
    asked: Asked | None,
    batches: Batches,
) -> Tensors:
    """The next token after the prompt, and after each restart's outcome in every form of it that was asked for."""
    tokens, found = figures.top_k_ids[..., 0], {}
    if asked:
        whole = NextTokens(asked, subject, prompt, batches)
        found["next_token"] = whole.wanted
        found["next_token_of_tokens"] = whole.of_tokens(tokens)
        found["next_token_of_text"] = whole.of_texts(tokens)
        of_embeddings = whole.of_embeddings(figures.embeddings)
        if of_embeddings is not None:
            found["next_token_of_embeddings"] = of_embeddings
            found["next_token_of_shifted"] = _stacked([whole.of_embeddings(e) for e in figures.shifted_embeddings])
    if options.head != "none":
        truncated = TruncatedNextTokens(subject, prompt, site, options, figures.target_embeddings, batches)
        found["truncated_next_token"] = truncated.wanted
        found["truncated_next_token_of_embeddings"] = truncated.of_embeddings(figures.embeddings)
        found["truncated_next_token_of_tokens"] = truncated.of_embeddings(figures.decoded_embeddings)
        found["truncated_next_token_of_shifted"] = _stacked(
            [truncated.of_embeddings(e) for e in figures.shifted_embeddings]
        )
    return found


def _stacked(rows: Sequence[torch.Tensor | None]) -> torch.Tensor:
    return torch.stack([row for row in rows if row is not None])
