"""Encoders: texts to one vector each, from states of a copy of the model, of any AutoModel, or of a T5's encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probekit import Subject, UsageError, out_of_memory
from probekit_plugins.copies import WithoutDropout, copied
from probekit_plugins.text_vae.checks import alike_but_the_last, looks_ahead
from probekit_plugins.text_vae.loading import loaded

if TYPE_CHECKING:
    from probekit_plugins.corpus import Texts
    from probekit_plugins.text_vae import Pooling

UNSEEN = (
    "The first position of a causal model has seen no other; choose another pooling (-o pooling=last), or an encoder "
    "that sees both ways (-o encoder=…)."
)


class Encoder(WithoutDropout):
    """`h(x)`, `[n, H]`: the pooled states of texts, padding left out."""

    width: int

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[n, T, H]` of token ids and their mask."""
        raise NotImplementedError

    def forward(self, texts: Texts) -> torch.Tensor:
        """Texts with what begins and ends them → `[n, H]`."""
        device = next(self.parameters()).device
        mask = texts.mask.to(device)
        return pooled(self.states(texts.ids.to(device), mask), mask, self.pooling)


class Copy(Encoder):
    """A copy of a causal LM, read at a site."""

    def __init__(self, subject: Subject, site: str | None, pooling: Pooling | None) -> None:
        """At its final norm by default, whose states have the size that a new linear map is made for.

        Raises UsageError for an unknown site, or for the pooling of a position that has seen nothing.
        """
        if pooling == "first":
            raise UsageError(UNSEEN)
        super().__init__(pooling or "last")
        if site is None:
            site = "norm" if subject.anatomy.norm is not None else "block.-1"
        copy = copied(subject)
        self.model = copy.model
        self._subject, self._site = [copy], site
        ids = torch.zeros(1, 2, dtype=torch.long)
        states = copy.capture(ids, [site])[site]
        if states.dim() != 3 or states.shape[:2] != ids.shape:
            raise UsageError(
                f"The activation at {site} is {list(states.shape)} for 2 tokens, and an encoder is read at a site with "
                "one vector for each token; choose another (-o site=block.-1)."
            )
        self.width = states.shape[-1]

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        subject = self._subject[0]
        beside = None if bool(mask.all()) else mask
        embeddings = subject.anatomy.embedding(ids)
        found: torch.Tensor = subject.layer_map(self._site, input_ids=ids, attention_mask=beside)(embeddings)
        return found


class Loaded(Encoder):
    """An encoder of transformers' own: its last hidden state."""

    def __init__(self, model: Any, pooling: Pooling | None) -> None:
        """Unset, `pooling` is the first position, or the last of a model whose first has seen no other.

        Raises UsageError if it gives no states of texts, or for the pooling of a position that has seen nothing.
        """
        super().__init__(pooling or "first")
        self.model = model.float().eval().requires_grad_(True)
        states = self._tried()
        if not looks_ahead(states):
            if pooling == "first":
                raise UsageError(UNSEEN)
            self.pooling = pooling or "last"
        self.width = states.shape[-1]

    def _tried(self) -> torch.Tensor:
        """The states of two texts that are alike but for their last tokens."""
        name = type(self.model).__name__
        try:
            with torch.no_grad():
                ids = alike_but_the_last(self.model.get_input_embeddings().num_embeddings)
                ids = ids.to(next(self.parameters()).device)
                states = self.states(ids, torch.ones_like(ids))
        except Exception as error:
            if out_of_memory(error):
                raise
            raise UsageError(f"{name} reads no texts, so it is no encoder of them; choose another.") from error
        if states.dim() != 3 or states.shape[:2] != ids.shape:
            raise UsageError(f"{name} gives no state for each token of a text; choose another encoder.")
        return states

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return found


def pooled(states: torch.Tensor, mask: torch.Tensor, how: Pooling) -> torch.Tensor:
    """`[n, T, H]` → `[n, H]`, padding on the right left out."""
    if how == "first":
        return states[:, 0]
    if how == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    kept = mask[..., None].bool()
    if how == "max":
        return states.masked_fill(~kept, -torch.inf).amax(1)
    return (states * kept).sum(1) / kept.sum(1)


def automodel(name: str) -> tuple[Any, Any]:
    """A text encoder and its tokenizer, by name or folder; of an encoder–decoder its encoder.

    Raises UsageError with one sentence if there is none. No code that comes with it is run.
    """
    from transformers import AutoModel

    model, tokenizer = loaded(AutoModel, name, "encoder", "the name or folder of an AutoModel with its tokenizer")
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return model, tokenizer


def longest(model: Any, otherwise: int) -> int:
    """Most positions that an encoder takes: as its config says, but for those that its table begins behind, as RoBERTa
    does behind its padding; `otherwise` where it does not say.
    """
    said = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(said, int) or said < 1:
        return otherwise
    tables = (each for name, each in model.named_modules() if name.endswith("position_embeddings"))
    padding = (getattr(each, "padding_idx", None) for each in tables)
    return said - max((each + 1 for each in padding if each is not None), default=0)
