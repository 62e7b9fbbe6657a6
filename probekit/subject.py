"""The subject: a loaded model with its tokenizer and its anatomy. The one facade that analyses work with.

Never modified: no module replaced, no weight changed; modes and flags are given back, hooks come off. What a subject
computes it computes in eval mode, whatever mode the model is in; only a layer map has dropout on if asked to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probekit import forward
from probekit.decoding import decoders
from probekit.errors import AnalysisError, UsageError, nearest
from probekit.forward.rest import resting
from probekit.models.anatomy import Anatomy, find_anatomy
from probekit.models.devices import execution_device
from probekit.models.loading import LoadedModel, load_model
from probekit.models.offload import Offloaded
from probekit.models.passes import context_of, padding_token
from probekit.models.placement import limits_in_bytes
from probekit.models.spec import ModelSpec, parse_spec
from probekit.models.tokens import decode_text, encode_text, token_strings

if TYPE_CHECKING:
    from probekit.plugins import Plugins

DECODERS = ("pseudo-inverse", "nearest", "cosine", "unembedding")


class Subject:
    """A model to analyse: `Subject(model, tokenizer)` wraps one that is already loaded, `probekit.load` loads one."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any | None = None,
        *,
        anatomy: Mapping[str, str | int | None] | None = None,
        facts: Mapping[str, Any] | None = None,
        settled: bool = False,
        compiled: bool = False,
        max_memory: Mapping[int | str, int] | None = None,
    ) -> None:
        """Wrap a model. `anatomy` declares module paths that override what structure says, and the `sequence` of a
        model that takes one number of tokens only; `settled` says that the model is in eval mode and frozen already,
        as `load` leaves it; `compiled` that layer maps for repeated steps compile its blocks; `max_memory` how
        many bytes of a device weights and batches may take together.

        Raises ModelError if the anatomy is not found, or if substituting a prompt's embeddings does not give what the
        plain forward gives.
        """
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        self.tokenizer = tokenizer
        self.facts: dict[str, Any] = dict(facts or {})
        self._settled = settled
        self._compiled = compiled
        self.max_memory = dict(max_memory or {})
        self.anatomy: Anatomy = find_anatomy(self.model, anatomy)
        self._probe = forward.probe_ids(self.model, self.anatomy)
        self._layout = forward.Layout(self.model, self.anatomy, settled)
        self._padding = forward.Padding(self.model, self.anatomy, self._layout, settled)
        self._caching = forward.Caching(self.model, self.anatomy, self._layout, settled)
        self._head_fits = False
        self._reading: dict[str, bool] = {}
        self.reads_ids("block.0")

    # --- what the model is -------------------------------------------------------------------------------------------

    @cached_property
    def width(self) -> int:
        """The width `d` of the token embeddings."""
        return int(self.embed(self._probe).shape[-1])

    @cached_property
    def vocabulary(self) -> int:
        """The number of rows `V` of the token embedding."""
        return forward.vocabulary_size(self.model, self.anatomy)

    @cached_property
    def context(self) -> int | None:
        """The longest sequence the model was made for, or None if its config does not say."""
        return context_of(self.model)

    @property
    def has_logits(self) -> bool:
        """Whether the site `logits` is a row of scores, one for each token: not of a model without a head."""
        generates = getattr(self.model, "can_generate", lambda: False)()
        return len(self.anatomy.tables) == 1 and (bool(generates) or self.anatomy.unembedding is not None)

    @property
    def device(self) -> torch.device:
        """Where token ids and embeddings enter the model."""
        return execution_device(self.anatomy.embedding)

    def sites(self) -> list[str]:
        """Every named site, in the order in which they run; dotted module paths are sites as well."""
        return forward.site_names(self.anatomy)

    def expand_sites(self, grammar: str) -> list[str]:
        """The sites that an expression such as `blocks`, `block.0:6:2` or `embedding,block.-1` stands for.

        Raises UsageError, listing the sites, if a part of it names none.
        """
        return forward.expand_sites(self.model, self.anatomy, grammar)

    def axes(self, site: str) -> tuple[str | int, ...]:
        """What the axes of that site's module output are, in its own order: `('batch', 'sequence', 768)`.

        A number is the size of an axis that depends on no prompt: `('batch', 'sequence', 4, 32)` has four streams. A
        model may work on another length than the prompt's: `'3 × sequence'`, `'32 + sequence'`.

        The activations of blocks are always `[batch, sequence, width]` where these two axes are found: at the prompt's
        own positions, all other axes joined in the width. Those of module paths are what the module returns, except in
        models whose blocks have another order. Measured by three small forwards up to the site. Raises UsageError for
        an unknown site.
        """
        return self._layout.axes(forward.find_site(self.model, self.anatomy, site)).names

    # --- tokens ------------------------------------------------------------------------------------------------------

    def encode(self, text: str, special_tokens: bool = True) -> torch.Tensor:
        """Text to token ids `[1, sequence]`, checked as `check_ids` does. Raises UsageError without a tokenizer."""
        if self.tokenizer is None:
            raise UsageError("This model has no tokenizer; give the prompt as token ids (--input-ids 1,2,3).")
        return self.check_ids(encode_text(self.tokenizer, text, special_tokens), repr(text))

    def check_ids(self, ids: Sequence[int], what: str = "of token ids") -> torch.Tensor:
        """Token ids as a `[1, sequence]` tensor.

        Raises UsageError if there are none, if one is outside the vocabulary, if they are longer than the context, if
        the model takes another number of them, or if one is padding and the model reads where padding stands.
        """
        if not ids:
            raise UsageError(f"The prompt {what} has no tokens; give a prompt with at least one.")
        if self._reads_padding and padding_token(self.model) in ids:
            raise UsageError(
                f"The prompt {_short(what)} has the padding token {padding_token(self.model)}, and this model takes "
                "positions or masks from where padding stands; leave it out of the prompt."
            )
        self._check_known(ids)
        self._check_length(len(ids), _short(what))
        return torch.tensor([list(ids)], device=self.device)

    def _check_known(self, ids: Sequence[int]) -> None:
        """Raise UsageError if an id is outside the vocabulary."""
        outside = [index for index in ids if not 0 <= index < self.vocabulary]
        if outside:
            raise UsageError(
                f"The token id {outside[0]} is outside the vocabulary of this model; "
                f"ids go from 0 to {self.vocabulary - 1}."
            )

    def _check_length(self, length: int, shown: str) -> None:
        """Raise UsageError if the model takes another number of tokens, or fewer."""
        taken = self.anatomy.sequence
        if taken is not None and length != taken:
            raise UsageError(
                f"This model reads exactly {taken} {'token' if taken == 1 else 'tokens'}; the prompt {shown} has "
                f"{length}. Give a prompt of {taken}, or a model made for {length}."
            )
        if self.context is not None and length > self.context:
            raise UsageError(
                f"The prompt {shown} has {length} tokens, but the model's context is {self.context}; shorten it."
            )

    def batch(self, prompts: Sequence[Sequence[int] | torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts of unequal length as one batch: token ids and attention mask, both `[batch, longest]`.

        Padded on the right, where no causal model lets it change a prompt's own activations. Raises UsageError as
        `check_ids` does.
        """
        rows = [prompt.flatten().tolist() if isinstance(prompt, torch.Tensor) else list(prompt) for prompt in prompts]
        if not rows:
            raise UsageError("There are no prompts to make a batch of; give at least one.")
        return forward.padded(self.model, [self.check_ids(row) for row in rows], self.device)

    def tokens(self, ids: Sequence[int] | torch.Tensor) -> list[str]:
        """The text of each token on its own, with its leading space; `<7>` without a tokenizer."""
        flat = ids.flatten().tolist() if isinstance(ids, torch.Tensor) else list(ids)
        known = self._token_texts
        new = [index for index in dict.fromkeys(flat) if index not in known]
        known.update(zip(new, token_strings(self.tokenizer, new), strict=True))
        return [known[index] for index in flat]

    def text(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of a whole sequence."""
        flat = ids.flatten().tolist() if isinstance(ids, torch.Tensor) else list(ids)
        return decode_text(self.tokenizer, flat)

    # --- the forward pass --------------------------------------------------------------------------------------------

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings as the model's embedding module returns them, before positions: `[batch, sequence]` → `[…,
        d]`.
        """
        with torch.no_grad(), self._passing(gradients=False):
            ids = input_ids.to(self.device)
            first, *more = (table(ids) for table in self.anatomy.tables)
        embeddings: torch.Tensor = sum(more, first)
        return embeddings

    def capture(
        self,
        input_ids: torch.Tensor,
        sites: Sequence[str],
        attention_mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The activation at each site, under the name it was asked by, detached; one forward, stopped at the deepest
        site.

        `input_ids` are `[batch, sequence]`, activations `[batch, sequence, width]`, in whatever order the model keeps
        its axes. Where the mask hides padding, a prompt has the activations that it has alone. Raises UsageError for an
        unknown site, or if the model does not give it those.
        """
        if not sites:
            return {}
        found = {name: self._layout.site(name) for name in sites}
        positions = self._checked_padding(sites, attention_mask, input_ids.shape)
        with resting(self.model, self._settled):
            ids = self._filled(input_ids.to(self.device), attention_mask)
            if attention_mask is not None and attention_mask.dim() == 2:
                attention_mask = attention_mask.expand(len(ids), -1).to(self.device)
            return forward.capture(self.model, found, self.anatomy.rows(ids), attention_mask, positions)

    def continuation(self, prefix_ids: torch.Tensor, site: str) -> forward.Continuation:
        """The activation at a site of many continuations of one prefix: called with token ids `[K, m]`, it gives
        `[K, m, width]`, what `capture` does at the last `m` positions of prefix and tokens.

        `prefix_ids` are `[n]` or `[1, n]`, none among others. The prefix is computed once where the model can keep its
        keys and values, or its state (`cached`): tried once for each site, by small forwards up to it. Raises
        UsageError for an unknown site, for ids of another shape or outside the vocabulary, or beyond the context.
        """
        prefix = prefix_ids[None] if prefix_ids.dim() == 1 else prefix_ids
        if prefix.dim() != 2 or len(prefix) != 1 or (prefix.numel() and not forward.is_ids(prefix)):
            raise UsageError(
                f"The prefix has the shape {tuple(prefix_ids.shape)} and the type {prefix_ids.dtype}; expected token "
                "ids [tokens] or [1, tokens]."
            )
        if prefix.numel():
            self._check_known([int(prefix.min()), int(prefix.max())])
        found = self._layout.site(site)
        return forward.Continuation(
            self.model,
            self.anatomy,
            found,
            prefix.to(self.device, torch.long, copy=True),
            self._check_continued,
            cached=prefix.shape[1] > 0 and self._caching.works(found),
            settled=self._settled,
            padding=padding_token(self.model) if self._reads_padding else None,
        )

    def _check_continued(self, ids: torch.Tensor, before: int) -> None:
        """Raise UsageError as `check_ids` does for ids `[K, m]` after so many others."""
        self._check_known([int(ids.min()), int(ids.max())])
        self._check_length(before + ids.shape[1], "with its continuation")

    def takes_padding(self, sites: Sequence[str]) -> bool:
        """Whether `capture` takes prompts of unequal length in one batch for these sites, padded on the right."""
        mask = torch.tensor([[1, 0]])
        try:
            self._padding.check(sites, mask, mask.shape)
        except UsageError:
            return False
        return True

    def _checked_padding(
        self, sites: Sequence[str], attention_mask: torch.Tensor | None, shape: torch.Size | None
    ) -> bool:
        """Whether the model has to be told its positions."""
        return attention_mask is not None and self._padding.check(sites, attention_mask, shape)

    def _filled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Token ids with the model's own padding where the mask hides them, if it reads where that stands."""
        if attention_mask is None or attention_mask.dim() != 2 or bool(attention_mask.all()) or not self._reads_padding:
            return input_ids
        return torch.where(attention_mask.to(input_ids.device) == 0, padding_token(self.model) or 0, input_ids)

    def layer_map(
        self,
        site: str,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        dropout: bool = False,
        repeated: bool = False,
    ) -> forward.LayerMap:
        """`O_l`: embeddings `[batch, sequence, d]` → the activation at the site; differentiable, stopped at the site.

        With `dropout` it computes as a model in training does: each call draws its own masks from torch's default
        generator, so that `torch.manual_seed` before a call decides them, and gradients go through the masks of the
        call. `repeated` says that it is called with embeddings of one shape again and again, and differentiated once:
        then its blocks are compiled, if the model was loaded with `compile`.

        Raises UsageError for an unknown site, if the blocks of this model read the token ids again and none are given,
        or if the mask hides padding and the model does not give a padded prompt what it has alone.
        """
        if input_ids is None and self.reads_ids(site):
            raise UsageError("Blocks of this model read the token ids again, so its layer map needs `input_ids`.")
        found = self._layout.site(site)
        positions = self._checked_padding([site], attention_mask, None if input_ids is None else input_ids.shape)
        input_ids = None if input_ids is None else self._filled(input_ids, attention_mask)
        parts = (self.model, self.anatomy, self._layout, found)
        compiled = repeated and self._compiled
        return forward.LayerMap(*parts, input_ids, attention_mask, self._settled, dropout, positions, compiled)

    def layer_maps(
        self,
        sites: Sequence[str],
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> forward.LayerMaps:
        """`O_l` at several sites: `{site: embeddings}` → `{site: activation}`, embeddings of one shape for each.

        Rows of all sites that are blocks go through the blocks together, each as far as its site, so that weights are
        read once; their values are those of `layer_map` but for rounding. `input_ids` and `attention_mask`, `[batch or
        1, sequence]`, are the same for every site. Raises UsageError as `layer_map` does.
        """
        alone = {site: self.layer_map(site, input_ids, attention_mask) for site in dict.fromkeys(sites)}
        depths = {site: self._depth(layer_map.site) for site, layer_map in alone.items() if layer_map.replays}
        deepest = {depth: site for site, depth in depths.items()}  # one of those that name the same block
        shared = [deepest[depth] for depth in sorted(deepest)]

        def for_rows_of(count: int, beside: torch.Tensor | None) -> torch.Tensor | None:
            return beside if beside is None or len(beside) == 1 else beside.repeat(count, *[1] * (beside.dim() - 1))

        together = []
        for number, site in enumerate(shared):
            given = [for_rows_of(len(shared) - number, beside) for beside in (input_ids, attention_mask)]
            together.append((site, self.layer_map(site, *given)))
        return forward.LayerMaps(self.model, alone, together, self._settled)

    @property
    def compiles(self) -> bool:
        """Whether the blocks of layer maps for repeated steps are compiled."""
        return self._compiled

    @property
    def captures_steps(self) -> bool:
        """Whether `repeated` tries a CUDA graph: where the whole model is on one CUDA device."""
        return forward.can_be_captured(self.model)

    def repeated(self, step: forward.Step, state: Callable[[], Iterable[torch.Tensor]]) -> forward.Step:
        """A step that is taken again and again, such as `e ← e − η ∇‖O_l(e) − t‖`: without Python where that can be.

        `step` moves the tensors of `state` in place, has no other effect, and returns a tensor; what it reads beside
        them has to stay where it is in memory. On one CUDA device it is captured in a CUDA graph after some steps, and
        replayed from then on, if that gives the same bits (`probekit.forward.graphs`); else, and elsewhere, it is
        taken as it is.
        """
        return forward.Graphed(self.model, step, state) if self.captures_steps else step

    def reads_ids(self, site: str) -> bool:
        """Whether what runs up to a site reads the token ids again, so that a layer map there needs them as well.

        Tried once, by two small forwards up to the site, unless a deeper block is known not to. Raises ModelError if
        substituting embeddings does not give the plain forward even with the ids, UsageError for an unknown site.
        """
        name = forward.find_site(self.model, self.anatomy, site).name
        if name not in self._reading:
            depth = self._depth(name)
            if any(not reads and 0 <= depth <= self._depth(known) for known, reads in self._reading.items()):
                return False
            self._reading[name] = forward.reads_ids(
                self.model,
                self._probe,
                lambda ids: self._captured(name, ids),
                lambda ids, beside: self._mapped(name, ids, beside),
            )
        return self._reading[name]

    def _depth(self, name: str) -> int:
        """How many blocks run before a site; -1 where that is not known."""
        if match := re.fullmatch(r"block\.(\d+)", name):
            return int(match[1])
        return len(self.anatomy.blocks) if name in ("norm", "logits") else -1

    def _mapped(self, site: str, input_ids: torch.Tensor, beside: torch.Tensor | None) -> torch.Tensor:
        """The activation that the embeddings of token ids give, with these ids, or none, beside them."""
        parts = (self.model, self.anatomy, self._layout, self._layout.site(site))
        with torch.no_grad(), forward.unedited():
            return forward.LayerMap(*parts, beside, settled=self._settled)(self.embed(input_ids))

    def _captured(self, site: str, input_ids: torch.Tensor) -> torch.Tensor:
        with resting(self.model, self._settled), forward.unedited():
            found = {site: self._layout.site(site)}
            return forward.capture(self.model, found, self.anatomy.rows(input_ids))[site]

    @property
    def conditioned_on_ids(self) -> bool:
        """Whether the ids have to be given beside the embeddings at any site that a layer map was asked for."""
        return any(self._reading.values())

    def edit(self, site: str, function: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager[None]:
        """Replace the activation `a`, `[batch, sequence, width]`, at a site by `function(a)` while the returned context
        is open. Raises UsageError for an unknown site.
        """
        return forward.edited(self._layout.site(site), function)

    def generate(
        self, input_ids: torch.Tensor, seed: int = 0, logits_processor: Sequence[Any] = (), **settings: Any
    ) -> torch.Tensor:
        """The model's own continuation: `[batch, sequence]` → `[batch, sequence + new]`, without padding in the input.

        `settings` are those of transformers' `GenerationConfig` (`max_new_tokens=64, do_sample=True, top_p=0.9`), with
        nothing but what the model's own leaves open; `seed` is that of sampling. Raises UsageError if the model cannot
        generate, for a text beyond its context, or for settings that are not there or do not work.
        """
        longest = settings.get("max_length") or input_ids.shape[1] + (settings.get("max_new_tokens") or 0)
        if self.context is not None and longest > self.context:
            raise UsageError(
                f"A text of {longest} tokens is to be generated, the prompt's {input_ids.shape[1]} among them, but the "
                f"model's context is {self.context}; generate less, or shorten the prompt."
            )
        with self._passing(gradients=False):
            return forward.generate(self.model, input_ids.to(self.device), seed, logits_processor, settings)

    @property
    def head_width(self) -> int | None:
        """The width of what `unembed` reads; None if there is no head, or more than a norm before it."""
        width = forward.head_width(self.anatomy)
        if width is not None and not self._head_fits:  # asked again where it did not: an edit may have been open
            with resting(self.model, self._settled), forward.unedited():
                self._head_fits = forward.reads_the_last_block(self.model, self.anatomy, self._layout)
        return width if self._head_fits else None

    def unembed(self, activation: torch.Tensor, norm: bool = True) -> torch.Tensor:
        """The model's head on an activation: `unembedding(norm(a))`, `[…, width]` → logits `[…, V]`; differentiable.

        `norm=False` leaves the final norm out, as the source page does. What a model does to its logits after the head
        (a soft cap, a scale) is left out: read the site `logits` for that. Raises ModelError if the model has no head,
        or more before it than its final norm, UsageError if the activation's width is not the head's.
        """
        width = self.head_width
        with self._passing(activation.requires_grad and torch.is_grad_enabled()):
            return forward.unembed(self.anatomy, type(self.model).__name__, width, activation, norm)

    @contextmanager
    def _passing(self, gradients: bool) -> Iterator[None]:
        """The model at rest, and nothing of an offload left behind."""
        with resting(self.model, self._settled), Offloaded(self.model).passing(gradients):
            yield

    # --- decoding ----------------------------------------------------------------------------------------------------

    @cached_property
    def embedding_matrix(self) -> torch.Tensor:
        """`W`, `[V, d]`, at least fp32: row i is what the embedding module returns for token i, scale included."""
        embedding = self.anatomy.embedding
        if type(embedding) is nn.Embedding and not embedding.weight.is_meta:
            matrix = embedding.weight.detach()
        else:
            ids = torch.arange(self.vocabulary, device=self.device)
            matrix = torch.cat([self.embed(part[None])[0] for part in ids.split(8192)])
        return matrix if matrix.dtype == torch.float64 else matrix.float()

    def decoder(self, name: str = "pseudo-inverse") -> decoders.Decoder:
        """The decoder of that name, made once: pseudo-inverse, nearest, cosine or unembedding.

        Raises UsageError for another name, AnalysisError if the embedding matrix holds NaN or infinity.
        """
        if name not in DECODERS:
            raise UsageError(
                f"There is no decoder '{name}'; there are: {', '.join(DECODERS)}.{nearest(name, DECODERS)}"
            )
        if name not in self._decoders:
            if name == "unembedding":
                self._decoders[name] = _Unembedding(self)
            else:
                self.check_finite(self.embedding_matrix, "The token embedding")
                kinds: dict[str, Callable[[torch.Tensor], decoders.Decoder]] = {
                    "pseudo-inverse": decoders.PseudoInverseDecoder,
                    "nearest": decoders.NearestDecoder,
                    "cosine": decoders.CosineDecoder,
                }
                self._decoders[name] = kinds[name](self.embedding_matrix)
        return self._decoders[name]

    @cached_property
    def _decoders(self) -> dict[str, decoders.Decoder]:
        return {}

    def decode(self, embeddings: torch.Tensor, top_k: int = 5, decoder: str = "pseudo-inverse") -> torch.Tensor:
        """Embeddings, or any activation of their width, to token ids `[batch, sequence, k]`, best first.

        `argmax_i [e (WᵀW)⁻¹ Wᵀ]_i` by default. Raises UsageError if the width is not the embedding's or k too large.
        """
        if decoder != "unembedding" and embeddings.shape[-1] != self.width:
            raise UsageError(
                f"Only activations as wide as the embedding ({self.width}) can be decoded by it; this one has width "
                f"{embeddings.shape[-1]}."
            )
        count = self._scored(decoder)
        if not 1 <= top_k <= count:
            raise UsageError(f"top_k is {top_k}; expected 1 to {count}, the number of tokens that are scored.")
        with torch.no_grad():
            return decoders.top_k(self.decoder(decoder), embeddings.detach(), top_k, self.vocabulary)

    def _scored(self, decoder: str) -> int:
        """How many tokens a decoder scores: a head may have fewer rows than the embedding."""
        weight = getattr(self.anatomy.unembedding, "weight", None) if decoder == "unembedding" else None
        return self.vocabulary if weight is None else min(self.vocabulary, int(weight.shape[0]))

    def margins(
        self, decoder: str = "pseudo-inverse", progress: Callable[[int], None] = lambda rows: None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How safely each token's own embedding decodes to it: `h_ii − max_{j≠i} h_ij`, and the strongest rival `j`.

        Two `[V]` tensors; a token round-trips if its margin is positive. `h_ij` is the decoder's score of token j for
        the embedding of token i; for the pseudo-inverse `h = W(WᵀW)⁻¹Wᵀ`. `progress` is told how many rows are done.
        """
        if self._scored(decoder) < self.vocabulary:
            raise UsageError(
                f"The head scores {self._scored(decoder)} of the {self.vocabulary} tokens that are embedded, so that "
                "some have no margin; choose another decoder."
            )
        with torch.no_grad():
            return decoders.margins(self.decoder(decoder), self.embedding_matrix, progress)

    @cached_property
    def _token_texts(self) -> dict[int, str]:
        """The texts of tokens that were asked for: said once, and one object however often they occur."""
        return {}

    # --- checks ------------------------------------------------------------------------------------------------------

    def check_finite(self, values: torch.Tensor, what: str) -> None:
        """Raise AnalysisError with a sentence, naming the weight at fault if there is one, unless all values are
        finite.
        """
        if bool(torch.isfinite(values).all()):
            return
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
                raise AnalysisError(f"{what} is NaN or infinite, because the weight {name} holds NaN or infinity.")
        raise AnalysisError(
            f"{what} is NaN or infinite, though the weights are finite; a wider dtype (--dtype float32) may help."
        )

    @cached_property
    def _reads_padding(self) -> bool:
        """Whether a padding token within a prompt changes more than its own embedding: positions, or masks."""
        padding = padding_token(self.model)
        if padding is None or padding >= self.vocabulary or self._probe.shape[1] < 3 or self.reads_ids("block.0"):
            return False
        ids = self._probe.clone()
        ids[0, 1] = padding
        return not forward.close(self._captured("block.0", ids), self._mapped("block.0", ids, None))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


class _Unembedding:
    """The model's own head as a decoder: `unembedding(norm(e))`."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self._subject.unembed(embeddings).float()


def load(name: str | os.PathLike[str] = "demo", *, plugins: Plugins | None = None, **options: Any) -> Subject:
    """Load a model and make a subject of it: `probekit.load("gpt2-xl", quantization="int8", device_map="auto")`.

    Options are the fields of `ModelSpec`. Raises ModelError with one sentence if it cannot be loaded, UsageError for a
    wrong option.
    """
    return load_spec(parse_spec(name=os.fspath(name), **options), plugins)


def load_spec(spec: ModelSpec, plugins: Plugins | None = None) -> Subject:
    """Load what a model spec says, with the loaders and anatomies of plugins."""
    return subject_of(load_model(spec, plugins), spec, plugins)


def subject_of(loaded: LoadedModel, spec: ModelSpec, plugins: Plugins | None = None) -> Subject:
    """The subject of a model that is loaded, with the anatomy that a plugin or the spec declares."""
    declared = declared_anatomy(loaded.model, spec, plugins)
    return Subject(
        loaded.model,
        loaded.tokenizer,
        anatomy=declared,
        facts=loaded.facts,
        settled=True,
        compiled=spec.compile,
        max_memory=limits_in_bytes(spec),
    )


def declared_anatomy(
    model: nn.Module, spec: ModelSpec, plugins: Plugins | None = None
) -> Mapping[str, str | int | None]:
    """What a plugin declares of a model's anatomy, and over it what the spec does."""
    declared = plugins.first("probekit_anatomy", model=model) if plugins else None
    return {**(declared or {}), **({"blocks": spec.blocks} if spec.blocks else {})}
