"""Autoencoders and language models as they are before their training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from probekit_plugins.copies import check, copied
from probekit_plugins.corpus import Corpus
from probekit_plugins.head import predicted_tokens
from probekit_plugins.text_vae.decoders import Decoder, Lstm, T5Decoder
from probekit_plugins.text_vae.encoders import Copy, Encoder, Loaded, automodel, longest
from probekit_plugins.text_vae.reading import Reader, Reading
from probekit_plugins.text_vae.t5 import t5
from probekit_plugins.text_vae.vae import Language, Vae

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.text_vae import Injection, TextVaeOptions
    from probekit_plugins.text_vae.recipe import Recipe

# Positions beside a text's own tokens: what begins it, what ends it, and the memory.
BESIDE = 3
# Most tokens of a text that a tokenizer of its own takes, where the encoder does not say.
LONGEST = 512


@dataclass(frozen=True)
class Maker:
    """Makes what is trained, each time anew from the same weights; `seed` draws those that are new."""

    subject: Subject
    options: TextVaeOptions
    encoder_reader: Reader
    decoder_reader: Reader
    lengths: tuple[int, int]
    loaded: Any = None
    """An encoder or a T5 that was read from files: copied for each training, and not read again."""

    @classmethod
    def of(cls, subject: Subject, options: TextVaeOptions) -> Maker:
        """Raises UsageError if the model cannot be copied, or an encoder or T5 not be loaded."""
        if options.seq2seq is not None:
            model, tokenizer = t5(options.seq2seq, subject, 0)
            if tokenizer is None:
                own = Reader.of(subject)
                return cls(subject, options, own, own, (LONGEST, LONGEST))
            tokens = model.get_input_embeddings().num_embeddings
            reader = Reader.by(tokenizer, tokens)
            begun = Reader.by(tokenizer, tokens, [model.config.decoder_start_token_id or 0])
            return cls(subject, options, reader, begun, (LONGEST, LONGEST), model)
        check(subject, "A text autoencoder")
        own = Reader.of(subject)
        if options.encoder is None:
            return cls(subject, options, own, own, (LONGEST, LONGEST))
        model, tokenizer = automodel(options.encoder)
        Loaded(model, options.pooling)  # what is no encoder of texts is said so
        reader = Reader.by(tokenizer, model.get_input_embeddings().num_embeddings)
        room = longest(model, LONGEST) - len(reader.start) - len(reader.end)
        return cls(subject, options, reader, own, (max(1, min(room, LONGEST)), LONGEST), model)

    def reading(self, corpus: Corpus) -> Reading:
        """All texts as encoder and decoder read them."""
        return Reading.of(corpus, self.subject, self.encoder_reader, self.decoder_reader, self.lengths)

    def vae(self, recipe: Recipe, seed: int) -> Vae:
        """An autoencoder. Raises UsageError if the model takes no memory, or has no such site or pooling."""
        with _drawn(seed):
            if self.options.seq2seq is not None:
                model = self._t5(seed)
                decoder: Decoder = T5Decoder(model, model.decoder.embed_tokens, recipe.latent, recipe.injection)
                encoder: Encoder = Loaded(model.get_encoder(), recipe.pooling or "max")
            else:
                decoder, encoder = self._decoder(recipe.latent, recipe.injection), self._encoder(recipe)
            readers, device = (self.encoder_reader, self.decoder_reader), next(decoder.parameters()).device
            return Vae(encoder.to(device), decoder, readers, recipe, device).eval()

    def language(self, seed: int) -> Language:
        """The decoder without z."""
        with _drawn(seed):
            if self.options.seq2seq is not None:
                model = self._t5(seed)
                return Language(T5Decoder(model, model.decoder.embed_tokens, 1, None), self.decoder_reader).eval()
            return Language(self._decoder(1, None), self.decoder_reader).eval()

    def lstm(self, seed: int) -> Language:
        """An LSTM with the decoder's vocabulary and width."""
        with _drawn(seed):
            vocabulary, width = predicted_tokens(self.subject), self.subject.width
            if self.decoder_reader.tokenizer is not None:
                vocabulary = len(self.decoder_reader.tokenizer)
            return Language(Lstm(vocabulary, width).to(self.subject.device), self.decoder_reader).eval()

    def _encoder(self, recipe: Recipe) -> Encoder:
        if self.options.encoder is None:
            return Copy(self.subject, self.options.site, recipe.pooling)
        return Loaded(copy.deepcopy(self.loaded), recipe.pooling)

    def _decoder(self, latent: int, injection: Injection | None) -> Decoder:
        own = copied(self.subject)
        return Decoder(own.model, own.anatomy.embedding, latent, injection)

    def _t5(self, seed: int) -> Any:
        model = copy.deepcopy(self.loaded)
        if model is None:  # of random weights: others with each seed
            model, _ = t5(str(self.options.seq2seq), self.subject, seed)
        return model.float().to(self.subject.device).eval().requires_grad_(True)


@contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """New weights are drawn from a seed, on the CPU; the caller's random state is given back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch's own: that would seed every device
        yield
