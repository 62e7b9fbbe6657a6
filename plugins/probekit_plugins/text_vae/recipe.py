"""What is trained: each λ, and what stands beside, with what the preset says of options that are unset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit_plugins.text_vae import Injection, Pooling, TextVaeOptions

COLLAPSED, AUTOENCODER = "collapsed", "autoencoder"
PRESETS: dict[str, dict[str, Any]] = {
    "optimus": {"injection": "both", "pooling": None, "free_bits": [0.5], "pretraining": 0.5, "deletion": 0.0},
    "t5": {"injection": "memory", "pooling": "max", "free_bits": [3.0], "pretraining": 0.5, "deletion": 0.4},
}


@dataclass(frozen=True)
class Recipe:
    """How one autoencoder is made and trained. `pooling` is None where it depends on the encoder."""

    name: str
    latent: int
    injection: Injection
    pooling: Pooling | None
    pretraining: float
    deletion: float
    reset_decoder: bool
    free_bits: float
    beta: float
    beta_zero: float
    beta_rise: float
    cycles: int

    @property
    def kind(self) -> str:
        """`vae`, or `beside` for what such a one is compared with."""
        return "beside" if self.name in (COLLAPSED, AUTOENCODER) else "vae"

    def beta_at(self, share: float) -> float:
        """β at this share of phase 2: zero, then linear up, then flat, in each cycle."""
        place = share * self.cycles % 1
        if place < self.beta_zero:
            return 0.0
        if place < self.beta_zero + self.beta_rise:
            return self.beta * (place - self.beta_zero) / self.beta_rise
        return self.beta


def recipes(options: TextVaeOptions) -> Iterator[Recipe]:
    """Every autoencoder that is trained: one for each λ, then those beside."""
    unset = PRESETS[options.preset]
    chosen = {key: value if getattr(options, key) is None else getattr(options, key) for key, value in unset.items()}
    every = chosen.pop("free_bits")
    first = Recipe(
        name="",
        latent=options.latent,
        reset_decoder=options.reset_decoder,
        free_bits=0.0,
        beta=options.beta,
        beta_zero=options.beta_zero,
        beta_rise=options.beta_rise,
        cycles=options.cycles,
        **chosen,
    )
    for value in every:
        yield replace(first, name=f"λ={value:g}", free_bits=value)
    if AUTOENCODER in options.beside:
        yield replace(first, name=AUTOENCODER, beta=0.0, reset_decoder=False)
    if COLLAPSED in options.beside:
        yield replace(first, name=COLLAPSED, pretraining=0.0, beta=1.0, beta_zero=0.0, beta_rise=0.0, cycles=1)
