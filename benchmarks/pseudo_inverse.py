"""Decoding embeddings by the pseudo-inverse of an embedding matrix: V = 50257, d = 768 and d = 1600.

Peers: `torch.linalg.pinv` and a product, in fp32 as scripts do it, and in fp64, which is what probekit's `d × d` system
is formed and solved in. All start from the fp32 matrix and end with a token for each embedding.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.measure import Side, alternate
from benchmarks.outcome import Outcome, Settings
from probekit.decoding import PseudoInverseDecoder

VOCABULARY = 50257
EMBEDDINGS = 160  # 32 restarts of 5 tokens
# Widths, rounds.
WIDTHS = ((768, 5), (1600, 3))
QUICK = ((96, 1),)
GOAL = 10.0

PROBEKIT, SINGLE, DOUBLE, PRODUCT = "probekit", "pinv in fp32", "pinv in fp64", "a product with pinv"


def matrix_and_embeddings(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random matrix with a condition number of 100, and embeddings: half near its rows, half from anywhere."""
    generator = torch.Generator().manual_seed(width)
    scales = torch.logspace(0, -2, width)
    matrix = torch.randn(VOCABULARY, width, generator=generator) * scales
    half = EMBEDDINGS // 2
    rows = torch.randint(0, VOCABULARY, (half,), generator=generator)
    noise = torch.randn(EMBEDDINGS, width, generator=generator) * scales
    return matrix, torch.cat([matrix[rows] + 0.3 * noise[:half], noise[half:]])


def by_probekit(matrix: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Tokens by probekit's decoder, made anew."""
    return PseudoInverseDecoder(matrix).scores(embeddings).argmax(-1)


def by_pinv(matrix: torch.Tensor, embeddings: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Tokens by the pseudo-inverse written out: `argmax e W⁺`."""
    pinv: torch.Tensor = torch.linalg.pinv(matrix.to(dtype))
    return by_product(pinv, embeddings.to(dtype))


def by_scores(decoder: PseudoInverseDecoder, embeddings: torch.Tensor) -> torch.Tensor:
    """Tokens by a decoder that is there already."""
    return decoder.scores(embeddings).argmax(-1)


def by_product(pinv: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Tokens by a pseudo-inverse that is there already."""
    return (embeddings @ pinv).argmax(-1)


def run(settings: Settings) -> Outcome:
    """Time from the matrix to tokens, then decoding alone with the inverse at hand. All tokens must be equal."""
    outcome = Outcome("Decoding by the pseudo-inverse")
    for width, rounds in QUICK if settings.quick else WIDTHS:
        matrix, embeddings = matrix_and_embeddings(width)
        sides = [
            Side(PROBEKIT, "probekit", partial(by_probekit, matrix, embeddings)),
            Side(SINGLE, "peer", partial(by_pinv, matrix, embeddings, torch.float32)),
            Side(DOUBLE, "peer", partial(by_pinv, matrix, embeddings, torch.float64)),
        ]
        timings = alternate(sides, rounds, warmup=1)
        outcome.time(f"d = {width}, from the matrix", sides, timings)
        outcome.figure(f"d = {width}: {SINGLE} / probekit", timings.ratio(SINGLE, PROBEKIT), GOAL, better="higher")
        outcome.figure(f"d = {width}: {DOUBLE} / probekit", timings.ratio(DOUBLE, PROBEKIT))

        pinv, decoder = torch.linalg.pinv(matrix), PseudoInverseDecoder(matrix)
        equal = int((by_product(pinv, embeddings) == by_scores(decoder, embeddings)).sum())
        if equal < EMBEDDINGS:
            raise RuntimeError(f"d = {width}: only {equal} of {EMBEDDINGS} decoded tokens are those of {SINGLE}.")
        sides = [
            Side(PROBEKIT, "probekit", partial(by_scores, decoder, embeddings)),
            Side(PRODUCT, "peer", partial(by_product, pinv, embeddings)),
        ]
        timings = alternate(sides, settings.rounds(50), warmup=settings.rounds(5))
        outcome.time(f"d = {width}, inverse at hand", sides, timings)
        outcome.figure(f"d = {width}, inverse at hand: probekit / {PRODUCT}", timings.ratio(PROBEKIT, PRODUCT))
    outcome.notes.append(f"All {EMBEDDINGS} decoded tokens are those of {SINGLE}, at each width.")
    return outcome
