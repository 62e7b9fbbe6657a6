"""What the exact inverter is measured against: three ways from a block's activations back to the tokens.

The exhaustive prefix scan, SIPIT's gradient policy, and the source page's joint descent, each written from its
description. All three verify in the same way: the activation that proposed tokens have is within `TOLERANCE` of the
given one, relative to its L2 norm, at every position that is decided. Tables that do not depend on the prompt (the
decoders of the embedding matrix) are made before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import probekit

# Of the L2 norm of the activation at a position. Batches of other shapes differ by about 1e-6 of it in fp32.
TOLERANCE = 1e-4
# The scan forwards so many tokens as one batch, or more where the prefix is so short that they are fewer positions than
# this. Batches of 64 to 4096 were tried: small ones stop sooner after the match and stay in the cache.
ROWS = 64
POSITIONS = 512
# SIPIT's first step, in mean distances of a token's embedding from the mean embedding, and after how many checks it is
# half as long.
STEP = 1.5
HALVED_AFTER = 60
# The page's descent.
LEARNING_RATE = 0.2
DECODE_EVERY = 10
SCHEDULES = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


@dataclass(frozen=True)
class Recovered:
    """What a baseline gave back, and what that took.

    `ids` are the tokens decided on: a prefix where a position had no match, the last decoded ones of a descent.
    `candidates` is how many tokens were checked at each position. `tokens` is how many positions were forwarded, all
    rows of all batches, checks and gradient steps alike; `steps` the gradient steps. `reached` says that the activation
    of `ids` matches at every position, `exact` that they are the prompt's, or None where the prompt was not told.
    """

    ids: tuple[int, ...]
    exact: bool | None
    seconds: float
    candidates: tuple[int, ...]
    tokens: int
    steps: int
    reached: bool


@dataclass
class _Count:
    """The work so far, and when it began."""

    start: float
    tokens: int = 0
    steps: int = 0

    def recovered(
        self, ids: Sequence[int], candidates: Sequence[int], reached: bool, prompt: torch.Tensor | None
    ) -> Recovered:
        seconds = time.perf_counter() - self.start
        exact = None if prompt is None else list(ids) == prompt.flatten().tolist()
        return Recovered(tuple(ids), exact, seconds, tuple(candidates), self.tokens, self.steps, reached)


def distances(activation: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`‖a − t‖₂ / ‖t‖₂` over the last axis; a match is at most the tolerance."""
    relative: torch.Tensor = (activation - target).norm(dim=-1) / target.norm(dim=-1)
    return relative


# --- the prefix scan -------------------------------------------------------------------------------------------------


def prefix_scan(
    subject: probekit.Subject,
    site: str,
    activations: torch.Tensor,
    *,
    prompt: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    rows: int = ROWS,
) -> Recovered:
    """Every token after the exact prefix, in the order of the vocabulary, up to the first batch that holds a match.

    `activations` are `[T, width]`. Whole sequences go through plain forwards, without a cache, stopped at the site.
    Of several matches in one batch the nearest is taken.
    """
    count = _Count(time.perf_counter())
    ids: list[int] = []
    candidates: list[int] = []
    for target in activations:
        found, checked = _scan_position(subject, site, ids, target, tolerance, rows, count)
        candidates.append(checked)
        if found is None:
            return count.recovered(ids, candidates, False, prompt)
        ids.append(found)
    return count.recovered(ids, candidates, True, prompt)


def _scan_position(
    subject: probekit.Subject,
    site: str,
    ids: list[int],
    target: torch.Tensor,
    tolerance: float,
    rows: int,
    count: _Count,
) -> tuple[int | None, int]:
    """The token after this prefix, or None, and how many were tried."""
    length = len(ids) + 1
    prefix = torch.tensor(ids, dtype=torch.long, device=subject.device)
    checked = 0
    for tokens in torch.arange(subject.vocabulary, device=subject.device).split(max(rows, POSITIONS // length)):
        batch = torch.cat([prefix.expand(len(tokens), -1), tokens[:, None]], dim=1)
        away = distances(subject.capture(batch, [site])[site][:, -1], target)
        checked += len(tokens)
        count.tokens += batch.numel()
        nearest = int(away.argmin())
        if float(away[nearest]) <= tolerance:
            return int(tokens[nearest]), checked
    return None, checked


# --- SIPIT -----------------------------------------------------------------------------------------------------------


def sipit(
    subject: probekit.Subject,
    site: str,
    activations: torch.Tensor,
    *,
    prompt: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    step: float = STEP,
) -> Recovered:
    """SIPIT's gradient policy: position by position, `e ← e − γ ∇½‖O(e)_t − t_t‖²` and the nearest token not yet tried.

    `e` is the embedding at position t alone, behind the exact prefix, and starts from the mean embedding. Each
    iteration takes one step, proposes the token that is nearest to `e` (L2) of those not tried, and checks it by a
    forward; the next step starts from `e`, not from the token. At most V checks a position, after which it gives up.

    The description leaves `γ` open. Here the step after k checks has the length `step · r / (1 + k/60)`, that is `γ =
    step · r / ((1 + k/60) ‖∇‖₂)` with `r` the mean distance of the tokens' embeddings from their mean, so that one
    choice serves models of any scale. It shrinks, as steps of one length ran in circles for 1314 checks at one position
    of 360, where these took 277 at most.
    Of the variants tried (fixed γ, Polyak's `γ = 2f/‖∇f‖²`, one length, lengths falling with √k or faster, Adam; from
    the mean or a random token; going on from `e` or from the token) this one needed the fewest checks on the trained
    models taken together. The check of a token and the next gradient are two rows of one forward.

    Source: Nikolaou et al., Language Models are Injective and Hence Invertible, arXiv 2510.15511.
    """
    decoder = subject.decoder("nearest")
    mean = subject.embedding_matrix.mean(0)
    length = step * float((subject.embedding_matrix - mean).norm(dim=1).mean())
    count = _Count(time.perf_counter())
    ids: list[int] = []
    candidates: list[int] = []
    for target in activations:
        policy = _Policy(subject, site, ids, target, tolerance, count)
        found = policy.search(mean, length, decoder.scores)
        candidates.append(policy.checked)
        if found is None:
            return count.recovered(ids, candidates, False, prompt)
        ids.append(found)
    return count.recovered(ids, candidates, True, prompt)


class _Policy:
    """The search for one token behind an exact prefix."""

    def __init__(
        self,
        subject: probekit.Subject,
        site: str,
        ids: list[int],
        target: torch.Tensor,
        tolerance: float,
        count: _Count,
    ) -> None:
        self.checked = 0
        self._subject = subject
        self._layer_map = subject.layer_map(site)  # one for each length: it replays the calls of few shapes
        matrix = subject.embedding_matrix
        self._prefix = matrix[torch.tensor(ids, dtype=torch.long, device=matrix.device)]
        self._target = target
        self._tolerance = tolerance
        self._count = count

    def search(self, start: torch.Tensor, length: float, scores: Callable[[torch.Tensor], torch.Tensor]) -> int | None:
        """The token that matches, or None if none of the vocabulary does."""
        matrix = self._subject.embedding_matrix
        tried = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
        embedding = start
        token: int | None = None
        while self.checked <= len(matrix):
            gradient = self._gradient(embedding, None if token is None else matrix[token])
            if gradient is None:
                return token
            if self.checked == len(matrix):
                break
            moved = length / (1 + self.checked / HALVED_AFTER)
            embedding = embedding - moved * torch.nn.functional.normalize(gradient, dim=0)
            token = int(scores(embedding).masked_fill(tried, -torch.inf).argmax())
            tried[token] = True
            self.checked += 1
        return None

    def _gradient(self, embedding: torch.Tensor, candidate: torch.Tensor | None) -> torch.Tensor | None:
        """`∇½‖O(e)_t − t_t‖²`, or None if the candidate, the second row of the same forward, matches."""
        point = embedding.clone().requires_grad_(True)
        lasts = point[None] if candidate is None else torch.stack([point, candidate])
        batch = torch.cat([self._prefix.expand(len(lasts), -1, -1), lasts[:, None]], dim=1)
        activation = self._layer_map(batch)[:, -1]
        self._count.tokens += len(lasts) * batch.shape[1]
        if candidate is not None and float(distances(activation[1].detach(), self._target)) <= self._tolerance:
            return None
        (gradient,) = torch.autograd.grad((activation[0] - self._target).square().sum() / 2, point)
        self._count.steps += 1
        return gradient


# --- the page's descent ----------------------------------------------------------------------------------------------


def page_descent(
    subject: probekit.Subject,
    site: str,
    activations: torch.Tensor,
    *,
    generator: torch.Generator,
    prompt: torch.Tensor | None = None,
    schedules: Sequence[int] = SCHEDULES,
    start: tuple[float, float] = (0.5, 0.05),
    learning_rate: float = LEARNING_RATE,
    seconds: float = 120.0,
    tolerance: float = TOLERANCE,
) -> Recovered:
    """The page's descent on all positions at once, until what it decodes to has the activation that was given.

    `e_{n+1} = e_n − η_n ∇‖O(e_n) − t‖₁`, `η_n` linear from η at the first step to η/10 at the last of N, from a start
    `N(mean, sigma)`; every ten steps and after the last one `e_n` is decoded by the pseudo-inverse, and tokens that
    were not checked just before are forwarded. Each N of `schedules` starts anew, until one gets there or the
    `seconds` are over. The page's text starts from N(½, 1/20), its code from N(0, 1). `candidates` is the number of
    whole prompts checked, the same at every position.

    The gradient of a sum of absolute values does not shrink near the target, so `η` says how near a descent comes. With
    the page's 0.2, N of 500, 1000 and 2000 gave back 6 to 9 of 20 random tokens across one block of an untrained GPT-2,
    whose embeddings have a standard deviation of 0.02; 0.005 (N = 1000) and 0.002 (N = 2000) gave back all in two of
    three descents.

    Source: Sentence Representation with Language Models, "Input representation accuracy" and its code.
    """
    subject.decoder("pseudo-inverse")
    count = _Count(time.perf_counter())
    descent = _PageDescent(subject, site, activations, tolerance, count)
    reached = False
    for steps in schedules:
        shape = (1, len(activations), subject.width)
        first = torch.randn(shape, generator=generator) * start[1] + start[0]
        reached = descent.run(first.to(subject.device), steps, learning_rate, count.start + seconds)
        if reached or time.perf_counter() >= count.start + seconds:
            break
    return count.recovered(descent.ids, [descent.checked] * len(activations), reached, prompt)


class _PageDescent:
    """Descents towards one target, and the tokens decoded last."""

    def __init__(
        self, subject: probekit.Subject, site: str, activations: torch.Tensor, tolerance: float, count: _Count
    ) -> None:
        self.ids: list[int] = []
        self.checked = 0
        self._subject = subject
        self._site = site
        self._layer_map = subject.layer_map(site)
        self._target = activations
        self._tolerance = tolerance
        self._count = count

    def run(self, embeddings: torch.Tensor, steps: int, learning_rate: float, until: float) -> bool:
        """One descent of so many steps; whether it got there before that time."""
        embeddings = embeddings.requires_grad_(True)
        for step in range(steps):
            loss = (self._layer_map(embeddings)[0] - self._target).abs().sum()
            (gradient,) = torch.autograd.grad(loss, embeddings)
            with torch.no_grad():
                embeddings -= learning_rate * (1 - 0.9 * step / max(steps - 1, 1)) * gradient
            self._count.steps += 1
            self._count.tokens += embeddings.shape[1]
            if (step + 1) % DECODE_EVERY == 0 or step + 1 == steps:
                if self._decodes_to_it(embeddings):
                    return True
                if time.perf_counter() >= until:
                    break
        return False

    def _decodes_to_it(self, embeddings: torch.Tensor) -> bool:
        ids = self._subject.decode(embeddings, top_k=1)[..., 0]
        if ids[0].tolist() == self.ids:  # checked before
            return False
        self.ids = ids[0].tolist()
        self.checked += 1
        self._count.tokens += ids.numel()
        found = self._subject.capture(ids, [self._site])[self._site][0]
        return bool((distances(found, self._target) <= self._tolerance).all())
