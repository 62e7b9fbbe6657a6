"""What the inverter did, and what its figures are, in words for the page. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# Options in words.
HEADS = {
    "none": "",
    "model": " followed by the model's head",
    "without-norm": " followed by the head without its norm",
}
LOSSES = {
    "l1": "the L1 distance",
    "l2": "the L2 distance",
    "cosine": "1 − the cosine",
    "mixed": "a sum of 1 − the cosine and the L1 distance",
}
OPTIMIZERS = {"adam": "Adam", "descent": "gradient descent", "lbfgs": "L-BFGS"}
DECODERS = {
    "nearest": "the token with the nearest embedding",
    "cosine": "the token whose embedding has the nearest direction",
    "pseudo-inverse": "a token by the pseudo-inverse of the embedding matrix",
    "unembedding": "a token by the model's unembedding",
}


def method(result: Result, sites: Sequence[str], options: GradientInverterOptions) -> str:
    """Three paragraphs: the descent, the discrete loss and whom it selects, the yardstick m."""
    blocks = " (block.N is the output of decoder block N, counted from 0)"
    rescored = (
        f" Then the {options.rescore} best candidates of each position, from the left, are told apart by the "
        "activation that the tokens themselves give: re-scoring."
        if options.rescore
        else ""
    )
    return (
        "Given is the prompt's activation t at a site of the model"
        f"{blocks if any(site.startswith('block.') for site in sites) else ''}. Gradient descent looks for input "
        f"embeddings e with the same activation: it minimises {LOSSES[options.loss]} between O(e) and t, with O the "
        f"model up to the site{HEADS[options.head]}. {_start(result, options)} {options.steps} steps of "
        f"{OPTIMIZERS[options.optimizer]} (learning rate {result.metrics['learning_rate']:.3g}, {options.schedule} "
        "schedule). At the end, the embedding at each position is decoded to "
        f"{DECODERS[options.decoder]}.{rescored}\n\n"
        f"The discrete loss is the same distance with the {'re-scored' if options.rescore else 'decoded'} tokens as "
        "the input: 0 means that they give the activation exactly. The restart where it is least is the selected one, "
        "so that choosing it takes no knowledge of the prompt.\n\n"
        "Loss / m compares the loss of e with m, that of the prompt's own embeddings with normal noise of "
        f"σ = {options.shift_sigma[0]:g} added. Below 1, the descent came nearer than this noisy prompt. That alone is "
        "no success: embeddings that near may still decode to other tokens."
    )


def _start(result: Result, options: GradientInverterOptions) -> str:
    """Where the restarts begin, as the first half of a sentence."""
    sigma = f"{result.metrics['start_sigma']:.3g}"
    if options.start == "regression":
        return (
            "The first restart begins at the embeddings that a regression, learnt on the model's own outputs, expects "
            f"at each activation, the others with normal noise (σ = {sigma}) around it; each takes"
        )
    noise = f"normal noise (mean {options.start_mean:g}, σ = {sigma})"
    if options.target_share or options.noise_share != 1:
        noise = f"{options.noise_share:g} × {noise} + {options.target_share:g} × the prompt's own embeddings"
    return f"Each restart begins at {noise} and takes"
