"""What is optimised: embeddings themselves, or a vector over the vocabulary that stands for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.gradient_inverter.settings import learning_rate, start_sigma

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.gradient_inverter import GradientInverterOptions


class Space:
    """The variable `x` and the embeddings `e(x)` that it stands for: `e = x`, `e = xW` or `e = softmax(x)W`.

    `W` holds the rows of the tokens that may be found. `sigma` is the standard deviation of a start whose embeddings
    have about the spread of the embedding matrix, or a quarter of it around a regression, unless the options say
    another; `spread` is that of noise, and `rate` the learning rate to go with.
    """

    def __init__(self, subject: Subject, allowed: torch.Tensor | None, options: GradientInverterOptions) -> None:
        matrix = subject.embedding_matrix
        self._matrix = matrix if allowed is None else matrix[allowed]
        self._allowed = allowed
        self._kind = options.input_space
        spread = float(matrix.std())
        if self._kind == "vocabulary-linear":
            spread = 1 / len(self._matrix) ** 0.5
        elif self._kind == "vocabulary-softmax":
            spread = 1.0
        self.spread = spread
        self.sigma = start_sigma(spread, options)
        self.rate = learning_rate(spread, options)
        self._pull = options.nearest_pull
        self._box = (self._matrix.amin(0), self._matrix.amax(0)) if options.embedding_box else None

    def start(
        self, noise: torch.Tensor, target: torch.Tensor, ids: torch.Tensor, share: tuple[float, float]
    ) -> torch.Tensor:
        """`s·noise + t·x*`, where `x*` are the prompt's embeddings `target`, or its ids one-hot."""
        noise_share, target_share = share
        if self._kind == "embedding":
            return noise_share * noise + target_share * target
        if not target_share:
            return noise_share * noise
        columns = torch.arange(len(self._matrix)) if self._allowed is None else self._allowed.cpu()
        one_hot = (ids.cpu()[..., None] == columns).to(noise)
        return noise_share * noise + target_share * one_hot

    @property
    def width(self) -> int:
        """Entries of `x` for each position."""
        return self._matrix.shape[1] if self._kind == "embedding" else self._matrix.shape[0]

    @property
    def candidates(self) -> int:
        """How many tokens may be found."""
        return len(self._matrix)

    def embeddings(self, x: torch.Tensor) -> torch.Tensor:
        """`e(x)`, differentiable."""
        if self._kind == "embedding":
            return x
        return (x.softmax(-1) if self._kind == "vocabulary-softmax" else x) @ self._matrix

    def prior(self, x: torch.Tensor) -> torch.Tensor:
        """`λ Σ ‖e − w‖²` for each row, with `w` the nearest row of `W`; which row that is gets no gradient."""
        embeddings = self.embeddings(x)
        with torch.no_grad():
            flat = embeddings.flatten(0, 1)
            scores = flat @ self._matrix.T - self._matrix.square().sum(1) / 2
            nearest = self._matrix[scores.argmax(1)].view_as(embeddings)
        return self._pull * (embeddings - nearest).square().sum((1, 2))

    @property
    def has_prior(self) -> bool:
        return self._pull > 0

    @torch.no_grad()
    def clamp(self, x: torch.Tensor) -> None:
        """Keep the embeddings in the box that the options ask for, in place."""
        if self._box is not None:
            x.clamp_(*self._box)


def allowed_tokens(subject: Subject, options: GradientInverterOptions, prompt_ids: list[int]) -> torch.Tensor | None:
    """The ids that may be found, sorted, or None for all. Raises UsageError for ids that are not there."""
    if options.vocabulary == "all":
        return None
    ids = sorted(set(prompt_ids if options.vocabulary == "prompts" else options.vocabulary))
    if not ids or not 0 <= ids[0] <= ids[-1] < subject.vocabulary:
        raise UsageError(f"The option vocabulary needs token ids from 0 to {subject.vocabulary - 1}; it is {ids[:6]}.")
    return torch.tensor(ids, device=subject.device)


def decode(
    subject: Subject, embeddings: torch.Tensor, allowed: torch.Tensor | None, options: GradientInverterOptions, k: int
) -> torch.Tensor:
    """The k best tokens of each embedding among those that are allowed, `[…, d]` → `[…, k]`."""
    if allowed is None:
        return subject.decode(embeddings, top_k=k, decoder=options.decoder)
    decoder = subject.decoder(options.decoder)
    flat = embeddings.detach().reshape(-1, embeddings.shape[-1])
    with torch.no_grad():
        found = torch.cat([decoder.scores(rows)[:, allowed].topk(k, dim=-1).indices for rows in flat.split(1024)])
    return allowed[found].reshape(*embeddings.shape[:-1], k)
