"""The autoencoder: texts → vectors → texts, of two subjects, which are one where the model is trained in full.

Texts are token ids `[n, T]` with a mask `[n, T]`, 1 at their tokens; padding is on the right. Vectors are `[n, k, d]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from probekit_plugins import copies, lora

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions
    from probekit_plugins.one_word_autoencoder.wording import Wording

# The standard deviation of learned embeddings to begin with, that of transformers' own.
SMALL = 0.02


class OneWord(nn.Module):
    """`E = W LN(h) + b`, h the state at the site where k learned query slots stand behind the text.

    E takes the place of k token embeddings in front of what is decoded. `Embed(E_{t−1}, segment)` reads E_{t−1} in
    front of the segment; the gate makes `E_t = g E_{t−1} + (1 − g) E`, with `g = σ(W_g [LN(E_{t−1}), LN(h)] + 1)`.

    Its parameters are those that are trained, of the copy as well; the copy itself is no submodule, so that it stays
    in eval mode, and what is frozen of it is not saved with every training.
    """

    def __init__(
        self, subject: Subject, words: Wording, site: str, vectors: int, options: OneWordAutoencoderOptions, seed: int
    ) -> None:
        """torch's own generator stays as it is."""
        super().__init__()
        self.words, self.vectors, self._site = words, vectors, site
        self._gated = options.segment is not None and options.update == "gate"
        if options.training == "lora":
            self.encoder, self.decoder = lora.adapted(subject, options.rank, options.alpha, seed), subject
        else:
            self.encoder = self.decoder = copies.copied(subject)
        trained = lora.trained(self.encoder)
        self.copy = nn.ParameterDict({name.replace(".", "/"): each for name, each in trained.items()})
        width, state = subject.width, self._state_width(subject)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch's own: that would seed every device
            self.slots = nn.Parameter(SMALL * torch.randn(vectors, width))
            self.mark = nn.Parameter(SMALL * torch.randn(vectors, width))
            self.norm = nn.LayerNorm(state)
            self.linear = nn.Linear(state, width)
            if self._gated:
                self.norm_before = nn.LayerNorm(width)
                self.gate = nn.Linear(width + state, width)
                nn.init.ones_(self.gate.bias)
        self.to(subject.device, next(iter(trained.values())).dtype)
        # Some models' token embeddings are large: vectors begin no smaller.
        self._scale = max(1.0, float(subject.embedding_matrix.square().mean().sqrt()))

    @property
    def trains_decoder(self) -> bool:
        """Whether what decodes is trained too."""
        return self.decoder is self.encoder

    def encode(self, ids: torch.Tensor, mask: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """`Embed(before, text)`, `[n, k, d]`; where a text has no token, what was before."""
        first, *between, behind = self.words.encode if before is None else self.words.again
        parts: list[torch.Tensor | Sequence[int]] = [first]
        if before is not None:
            parts += [before, *between]
        slots = self.slots.expand(len(ids), -1, -1)
        held = _Packed(self.encoder.anatomy.embedding, parts, ids, mask, [behind, slots])
        states = held.through(self.encoder, self._site)
        h = self.norm(held.last(states, self.vectors))
        found: torch.Tensor = self._scale * self.linear(h)
        if before is None:
            return found
        if self._gated:
            g = torch.sigmoid(self.gate(torch.cat([self.norm_before(before), h], -1)))
            found = g * before + (1 - g) * found
        return torch.where(mask.any(-1)[:, None, None], found, before)

    def decode(self, vectors: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits `[n, T + 1, V]` of the token at each place of the texts that E stands for, and of the one behind."""
        before, behind = self.words.decode
        return self._logits([before, vectors, behind], ids, mask)

    def continued(self, vectors: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits `[n, T, V]` of texts that come *after* those that E stands for: E is marked by a learned vector."""
        return self._logits([self.words.start, vectors + self.mark], ids, mask)[:, :-1]

    def plain(self, before: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits `[n, T, V]` of texts behind other tokens `[n, m]`, m > 0: what decodes, without vectors."""
        return self._logits([self._embedded(before)], ids, mask)[:, :-1]

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Of what decodes. The subject's own table is asked without gradients, so that none are left on it."""
        table = self.decoder.anatomy.embedding if self.trains_decoder else self.decoder.embed
        found: torch.Tensor = table(ids)
        return found

    def _logits(
        self, parts: Sequence[torch.Tensor | Sequence[int]], ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        held = _Packed(self._embedded, parts, ids, mask, [])
        return held.through(self.decoder, "logits")[:, held.first - 1 :]

    def _state_width(self, subject: Subject) -> int:
        probe = torch.zeros(1, 2, dtype=torch.long, device=subject.device)
        return int(subject.capture(probe, [self._site])[self._site].shape[-1])


class _Packed:
    """Input embeddings: some parts, texts of unequal length, and parts that stand right behind each text's end."""

    def __init__(
        self,
        table: Callable[[torch.Tensor], torch.Tensor],
        before: Sequence[torch.Tensor | Sequence[int]],
        ids: torch.Tensor,
        mask: torch.Tensor,
        behind: Sequence[torch.Tensor | Sequence[int]],
    ) -> None:
        def embedded(part: torch.Tensor | Sequence[int]) -> torch.Tensor:
            if isinstance(part, torch.Tensor):
                return part
            row = torch.tensor([list(part)], dtype=torch.long, device=ids.device)
            return table(row).expand(len(ids), -1, -1)

        text = table(ids)
        front, back = [embedded(part).to(text) for part in before], [embedded(part).to(text) for part in behind]
        whole = torch.cat([*front, text, *back], 1)
        self.first = sum(part.shape[1] for part in front)
        lengths = mask.sum(-1)
        self._lengths = self.first + lengths + sum(part.shape[1] for part in back)
        places = torch.arange(whole.shape[1], device=ids.device).expand(len(ids), -1)
        padding = (ids.shape[1] - lengths)[:, None]
        self._mask: torch.Tensor | None = None
        if bool(padding.any()):
            # The end of a text is followed by what stands behind it, and that by padding.
            ended = places >= self.first + lengths[:, None]
            order = torch.where(ended, places + padding, places) % whole.shape[1]
            whole = whole.gather(1, order[..., None].expand(-1, -1, whole.shape[-1]))
            self._mask = (places < self._lengths[:, None]).long()
        self._embeddings = whole

    def through(self, subject: Subject, site: str) -> torch.Tensor:
        """The activation at a site, `[n, positions, w]`, in fp32 at least."""
        found = subject.layer_map(site, attention_mask=self._mask)(self._embeddings)
        return found if found.dtype == torch.float64 else found.float()

    def last(self, states: torch.Tensor, count: int) -> torch.Tensor:
        """The states at the last positions of each row, `[n, count, w]`."""
        places = self._lengths[:, None] - count + torch.arange(count, device=states.device)
        return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
