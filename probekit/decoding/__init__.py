"""Decoding: from embeddings back to tokens. Functions of a matrix, whose rows are the tokens."""

from probekit.decoding.decoders import CosineDecoder, Decoder, NearestDecoder, PseudoInverseDecoder, margins

__all__ = ["CosineDecoder", "Decoder", "NearestDecoder", "PseudoInverseDecoder", "margins"]
