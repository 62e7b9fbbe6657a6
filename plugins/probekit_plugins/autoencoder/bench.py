"""What training and measuring share: a place, its examples, and the result that they go into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from probekit import TokenSequence
from probekit_plugins.autoencoder.labels import Labels

if TYPE_CHECKING:
    from probekit import Context, Result
    from probekit_plugins.autoencoder import AutoencoderOptions
    from probekit_plugins.autoencoder.data import Place
    from probekit_plugins.autoencoder.modules import Autoencoder, Contrastive
    from probekit_plugins.autoencoder.saved import Saved
    from probekit_plugins.autoencoder.settings import Setting
    from probekit_plugins.examples import Examples

Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """One training, or an autoencoder that was saved before, and what is told of it beside its figures."""

    name: str
    setting: Setting | None
    seed: int
    module: Autoencoder | Contrastive
    about: Row
    write: Callable[[Mapping[str, Any]], dict[str, bytes]] | None = None
    """Its files, given what is to be said of it; None for one that was saved before."""


@dataclass(frozen=True)
class Bench:
    """Everything that is known where autoencoders of one place are trained and measured."""

    place: Place
    examples: Examples
    options: AutoencoderOptions
    context: Context
    result: Result
    source: str
    saved: Sequence[Saved]

    @property
    def name(self) -> str:
        """The place's: a site, or two."""
        return self.place.name

    @cached_property
    def device(self) -> torch.device:
        """Where autoencoders are: where the model is, or on a GPU if there is one and no model."""
        subject = self.context.subject
        where = subject.device if subject is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device("cpu") if where.type in ("mps", "meta") else where

    @cached_property
    def held(self) -> torch.Tensor:
        """The examples that were held out, `[n, views, d]`."""
        return self.examples.held

    def keep(self, name: str | None, **tensors: torch.Tensor) -> None:
        """Tensors of the result, of the place, or of a training there."""
        of = self.name if name is None else f"{self.name}/{name}"
        self.result.tensors |= {f"{what}/{of}": tensor for what, tensor in tensors.items()}

    def keep_labels(self, labels: torch.Tensor) -> None:
        """How labels of examples are shown, each once."""
        assert self.labels is not None
        kept = self.result.sequences.setdefault("labels", [])
        known = {each.labels["label"] for each in kept if each.labels["site"] == self.name}
        for label in dict.fromkeys(labels.tolist()):
            if label not in known:
                text = self.labels.text(label, self.examples)
                kept.append(TokenSequence([], [], {"site": self.name, "label": label, "text": text}))

    @cached_property
    def data(self) -> dict[str, str | int]:
        """What is trained on and measured by here, as it stands on the card of a training."""
        found = self.examples
        return {
            "source": self.source,
            "documents": found.documents,
            "tokens": found.tokens,
            "examples": len(found.training),
            "documents_held_out": len(found.held_out),
            "examples_held_out": len(self.held),
        }

    @cached_property
    def labels(self) -> Labels | None:
        """Labels of the examples, where they are asked for. Raises UsageError if there are none of that name."""
        return None if self.options.labels is None else Labels(self.options.labels, self.examples.documents)
