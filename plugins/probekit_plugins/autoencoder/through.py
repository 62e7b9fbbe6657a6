"""Activations through an autoencoder: what it makes of them takes their place, wherever it was trained to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.autoencoder.saved import Saved, read
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.autoencoder.modules import Autoencoder

# Positions that an error is measured on where a file does not say it.
MEASURED = 512

Reconstruct = Callable[[torch.Tensor], torch.Tensor]
"""`x̂` of activations `[n, d]` in fp32, wherever the model has them."""


def reconstruction(autoencoder: Autoencoder) -> Reconstruct:
    """`x̂` for activations on any device, wherever the autoencoder is."""

    def of(x: torch.Tensor) -> torch.Tensor:
        like = next((each for each in autoencoder.state_dict().values() if each.is_floating_point()), x)
        return autoencoder.reconstruct(x.to(like)).to(x)

    return of


@torch.no_grad()
def replaced(activations: torch.Tensor, reconstruct: Reconstruct, counted: torch.Tensor) -> torch.Tensor:
    """`x̂` in place of `x` where it counts: `[…, d]` by a mask `[…]`, in fp32 and back in the activations' own type."""
    found, counted = activations.clone(), counted.to(activations.device)
    if bool(counted.any()):
        found[counted] = reconstruct(activations[counted].float()).to(found)
    return found


class Through:
    """A saved autoencoder that activations pass through, before somebody gets them."""

    def __init__(self, subject: Subject, path: str) -> None:
        """Raises UsageError if there is none in that folder, whose name it has."""
        self._saved: Saved = read(path)
        self.name = self._saved.name
        self.reconstruct = reconstruction(self._saved.autoencoder)
        own = subject.facts.get("weights_sha256") or subject.facts.get("revision")
        self._foreign = None not in (self._saved.weights, own) and self._saved.weights != own

    @property
    def skip_first(self) -> int:
        """So many positions at the beginning of a prompt keep their own activation."""
        return self._saved.skip_first

    def belongs(self, site: str) -> bool:
        """Whether it is of this site; one whose file names no site is of any."""
        return self._saved.site in ("", site)

    def check_sites(self, sites: Sequence[str]) -> None:
        """Raise UsageError for a site that it is not of."""
        for site in sites:
            if not self.belongs(site):
                raise UsageError(
                    f"The autoencoder '{self.name}' is of {self._saved.site}, and cannot say anything of {site}; "
                    f"give -o sites={self._saved.site}."
                )

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        """`[…, T, d]` with what it makes of them in their place, from the position on that it was trained on.

        Raises UsageError if they have another width than it takes.
        """
        *rows, length, width = activations.shape
        if width != self._saved.width:
            raise UsageError(
                f"The autoencoder '{self.name}' takes activations of width {self._saved.width}, but these have "
                f"{width}; name the model and the site that it was trained on."
            )
        counted = torch.arange(length) >= self.skip_first
        return replaced(activations, self.reconstruct, counted.expand(*rows, length))

    def error(self, subject: Subject, site: str, samples: Callable[[], Sequence[torch.Tensor]]) -> float:
        """The root mean square of `x − x̂` in an entry: as its file says, or else on some of these prompts, batches of
        token ids `[prompts, T]`.
        """
        if self._saved.error is not None:
            return self._saved.error
        squares, _, count = self._sums(
            [subject.capture(ids[: max(1, MEASURED // ids.shape[1])], [site])[site] for ids in samples()]
        )
        return math.sqrt(squares / max(count, 1))

    def note(self, site: str, activations: Sequence[torch.Tensor]) -> str:
        """What a reader has to know of targets that are made of these activations, `[…, T, d]` each."""
        squares, norms, _ = self._sums(activations)
        away = math.sqrt(squares / norms) if norms else 0.0
        sentences = [
            f"The targets at {site} are not the prompts' activations, but what the autoencoder '{self.name}' makes of "
            f"them, {away:.2g} of their norm away (‖x̂ − x‖ / ‖x‖)."
        ]
        if first := self.skip_first:
            kept = "position keeps its" if first == 1 else f"{first} positions keep their"
            sentences.append(f"The first {kept} own activation.")
        if self._foreign:
            sentences.append("It was trained on activations of other weights than this model's.")
        return " ".join(sentences)

    def _sums(self, activations: Sequence[torch.Tensor]) -> tuple[float, float, int]:
        """`Σ‖x̂ − x‖²`, `Σ‖x‖²`, and of how many entries."""
        squares, norms, count = 0.0, 0.0, 0
        for each in map(at_least_single, activations):
            moved = (self(each) - each)[..., self.skip_first :, :]
            squares += float(moved.double().square().sum())
            norms += float(each[..., self.skip_first :, :].double().square().sum())
            count += moved.numel()
        return squares, norms, count


def several(subject: Subject, paths: Sequence[str], taken: str) -> dict[str, Through]:
    """Saved autoencoders by name; of several folders of one name, or of that which is `taken`, the later are numbered.

    Raises UsageError as one does.
    """
    found: dict[str, Through] = {}
    for path in paths:
        through = Through(subject, path)
        own, number = through.name, 1
        while through.name in (taken, *found):
            number += 1
            through.name = f"{own} ({number})"
        found[through.name] = through
    return found
