"""A step of a text autoencoder against the two models that it is made of, trained by hand: what z costs.

The floor runs the encoder's blocks and the decoder, each a copy of the embedded model's first two blocks, on the same
32 texts of 24 tokens, with losses of their own and one optimiser, and passes nothing from one to the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import probekit
from benchmarks.measure import Side, alternate
from benchmarks.outcome import Outcome, Settings
from probekit_plugins.copies import copied
from probekit_plugins.corpus import Texts
from probekit_plugins.text_vae import Injection, TextVaeOptions
from probekit_plugins.text_vae.made import Maker
from probekit_plugins.text_vae.reading import Batch
from probekit_plugins.text_vae.recipe import recipes
from probekit_plugins.trainer import Step

BLOCKS, TEXTS, TOKENS = 2, 32, 24
GOAL = 1.10
INJECTIONS: tuple[Injection, ...] = ("memory", "embedding", "both")


def run(settings: Settings) -> Outcome:
    """Time a step of each injection, and by hand, in turns."""
    subject = probekit.load("demo", depth=BLOCKS)
    ids = torch.randint(1, subject.vocabulary, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))
    texts = Texts(ids, torch.full((TEXTS,), TOKENS))
    floor = "two models by hand"
    sides = [Side(floor, "floor", _by_hand(subject, ids))]
    sides += [Side(f"z as {injection}", "probekit", _vae(subject, texts, injection)) for injection in INJECTIONS]
    timings = alternate(sides, settings.rounds(30), warmup=settings.rounds(3))
    outcome = Outcome("A step of a text autoencoder")
    outcome.time(f"{BLOCKS} blocks twice, {TEXTS} texts of {TOKENS} tokens", sides, timings)
    for injection in INJECTIONS:
        outcome.figure(f"z as {injection} / {floor}", timings.ratio(f"z as {injection}", floor), GOAL)
    return outcome


def _vae(subject: probekit.Subject, texts: Texts, injection: Injection) -> Any:
    options = TextVaeOptions(injection=injection)
    vae = Maker.of(subject, options).vae(next(recipes(options)), 0)
    batch, generator = Batch(texts, texts), torch.Generator().manual_seed(0)
    return _stepping(vae, lambda: vae.loss(batch, Step(0, 0.9, generator)))


def _by_hand(subject: probekit.Subject, ids: torch.Tensor) -> Any:
    pair = nn.ModuleList([copied(subject).model for _ in range(2)])
    encoder, decoder = (each for each in pair)
    ends = torch.zeros(TEXTS, 1, dtype=torch.long)
    whole = torch.cat([ends, ids, ends], 1)  # what begins and ends a text

    def loss() -> torch.Tensor:
        model: Any = encoder
        states = model.transformer(input_ids=whole, use_cache=False).last_hidden_state
        logits = decoder(input_ids=whole[:, :-1], use_cache=False).logits
        predicted = nn.functional.cross_entropy(logits.transpose(1, 2), whole[:, 1:])
        return predicted + torch.Tensor.square(states[:, -1]).mean()

    return _stepping(pair, loss)


def _stepping(module: nn.Module, loss: Any) -> Any:
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step
