"""What autoencoders are trained on: activations of the prompts, of a text, or of what the model writes itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import ActivationBatch, Prompt, UsageError
from probekit_plugins.autoencoder import SPARSE
from probekit_plugins.autoencoder.saved import read
from probekit_plugins.autoencoder.sparse_format import sae_lens
from probekit_plugins.batches import Batches
from probekit_plugins.examples import Collection, Examples, Views
from probekit_plugins.texts import begun, piece_length, pieces_of_file
from probekit_plugins.writing import can_generate, written_pieces

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.autoencoder import AutoencoderOptions, Variant

# With fewer prompts the model writes a text of its own.
FEWEST = 10
USUAL_LENGTH = 64
# Pieces that are captured, or written, in one batch.
AT_ONCE = 32


@dataclass(frozen=True)
class Place:
    """What examples are of: a site, its halves of documents, or two sites; and which variants are trained on them."""

    name: str
    views: Views
    sites: list[str]
    variants: list[Variant]


class Data:
    """Collects examples at each site while a run's batches come in; `end` adds those of a text where one is asked for.

    The contrastive variant has examples of its own where its views are two sites or two halves of a document.
    """

    def __init__(self, options: AutoencoderOptions, context: Context, sites: Sequence[str]) -> None:
        self._options, self._context = options, context
        self.sites = list(sites)
        variants = options.variants
        pairs: list[Variant] = ["contrastive"] if options.views != "dropout" else []
        of_pairs = [variant for variant in variants if variant in pairs]
        of_tokens = [variant for variant in variants if variant not in of_pairs]
        self._places: list[Place] = []
        if of_tokens or options.saved:
            self._places += [Place(site, "token", [site], of_tokens) for site in self.sites]
        if of_pairs and options.views == "segments":
            self._places += [Place(f"halves of {site}", "segments", [site], of_pairs) for site in self.sites]
        if of_pairs and options.views == "sites":
            if len(self.sites) != 2:
                raise UsageError(
                    f"The views of the contrastive variant are two sites, but {len(self.sites)} are named; give two "
                    "with -o sites=block.1,block.3, or other views (-o views=dropout)."
                )
            self._places.append(Place(" and ".join(self.sites), "sites", self.sites, of_pairs))
        self.saved = [read(path) for path in options.saved]
        self._check()
        self._collections = self._made()
        self._first: torch.Tensor | None = None
        self._asked_for_text = options.text is not None
        self.source = "the prompts"

    def add(self, batch: ActivationBatch) -> None:
        """The activations of some prompts; left out where a text takes their place."""
        if self._first is None:
            self._first = batch.input_ids[:1, :1]
        if not self._asked_for_text:
            self._add(batch)

    def end(self) -> list[tuple[Place, Examples]]:
        """The examples of each place."""
        subject = self._context.subject
        few = self._collections[0].documents < FEWEST
        if self._asked_for_text:
            if subject is None:
                raise UsageError("A recording has no model to read a text with; leave out -o text, or --activations.")
            self.source = "the text"
            length = piece_length(subject, self._options.length, USUAL_LENGTH, "length")
            self._capture(subject, pieces_of_file(subject, str(self._options.text), length, "length"))
        elif few and self._first is not None and subject is not None and _writes(subject):
            self.source = "what the model writes itself"
            self._collections = self._made()
            self._capture(subject, self._written(subject, self._first))
        return [(place, kept.end()) for place, kept in zip(self._places, self._collections, strict=True)]

    def _check(self) -> None:
        """Raise UsageError for what is missing, before anything is collected."""
        if sparse := next((variant for variant in self._options.variants if variant in SPARSE), None):
            sae_lens(f"The variant '{sparse}'", ", or choose a variant that is not sparse")
        for found in self.saved:
            if found.site not in ("", *self.sites):
                raise UsageError(
                    f"The autoencoder '{found.name}' is of {found.site}, which is not among the sites "
                    f"({', '.join(self.sites)}); give -o sites={found.site}."
                )

    def _made(self) -> list[Collection]:
        options = self._options
        return [
            Collection(
                place.views,
                options.skip_first,
                options.held_out,
                options.held_out_tokens,
                options.buffer_memory * 2**30 / len(self._places),
                self._context.generator(f"examples/{place.name}"),
            )
            for place in self._places
        ]

    def _add(self, batch: ActivationBatch) -> None:
        for place, collection in zip(self._places, self._collections, strict=True):
            collection.add(batch, place.sites)

    def _written(self, subject: Subject, first: torch.Tensor) -> torch.Tensor:
        length = piece_length(subject, self._options.length, USUAL_LENGTH, "length")
        prompt, context, label = Prompt("", first, subject.tokens(first[0])), self._context, "text to train on"
        return written_pieces(
            subject, prompt, self._options.pieces, length, AT_ONCE, context, label, Batches(context, purpose=label)
        )

    def _capture(self, subject: Subject, pieces: torch.Tensor) -> None:
        with self._context.progress("activations of the text", len(pieces)) as progress:
            for batch in batches(subject, begun(subject, pieces), self.sites, self._context):
                self._add(batch)
                progress.step(len(batch.prompts))


def _writes(subject: Subject) -> bool:
    return can_generate(subject) and subject.anatomy.sequence is None


def batches(
    subject: Subject, pieces: torch.Tensor, sites: Sequence[str], context: Context
) -> Iterator[ActivationBatch]:
    """The activations of pieces of one length, `[pieces, T]`, some at a time, and fewer where memory runs out."""
    memory = Batches(context, purpose="activations of the text")
    for first in range(0, len(pieces), AT_ONCE):
        ids = pieces[first : first + AT_ONCE]

        def captured(rows: slice, ids: torch.Tensor = ids) -> dict[str, torch.Tensor]:
            return subject.capture(ids[rows], list(sites))

        parts = memory.parts(len(ids), captured, f"activations of the text/{first}")
        activations = {site: torch.cat([part[site] for part in parts]) for site in sites}
        numbers = torch.arange(first, first + len(ids))
        ids = ids.cpu()
        yield ActivationBatch(activations, ids, torch.ones_like(ids, dtype=torch.bool), numbers, subject.tokens)
