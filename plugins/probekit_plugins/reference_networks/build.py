"""From what a name asks for to a network with its weights and its tokenizer."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import probekit
from probekit import ModelError, ModelSpec
from probekit_plugins.reference_networks.names import EMBEDDING, Wanted
from probekit_plugins.reference_networks.network import ReferenceNetwork, make_blocks, sizes

# The spread of the embeddings that GPT-2 and most models after it start from.
EMBEDDING_SIGMA = 0.02


def build(wanted: Wanted, spec: ModelSpec) -> tuple[ReferenceNetwork, Any | None]:
    """The network and its tokenizer. Its weights are always random, seeded by the spec, and drawn in fp32 before
    anything else is drawn: another precision holds the same values.

    Raises ModelError if the network does not fit into memory, and what loading the embedding's model raises.
    """
    matrix: torch.Tensor | None
    tokenizer: Any
    if wanted.width is None:
        matrix, tokenizer = _embedding_of_a_model(wanted.embedding, spec)
        vocabulary, width = matrix.shape
    else:
        matrix, tokenizer = None, probekit.load(EMBEDDING).tokenizer
        vocabulary, width = wanted.vocabulary or len(tokenizer), wanted.width
        if vocabulary < len(tokenizer):
            tokenizer = None
    dtype = torch.float32 if spec.dtype == "auto" else getattr(torch, spec.dtype)
    _check_memory(wanted, spec, vocabulary, width, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.weights_seed)  # not torch's own: that would seed every device
        blocks = make_blocks(wanted.kind, wanted.tokens, width)
        if matrix is None:
            matrix = EMBEDDING_SIGMA * torch.randn(vocabulary, width, device="cpu", dtype=torch.float32)
    network = ReferenceNetwork(nn.Embedding.from_pretrained(matrix), blocks, wanted.tokens)
    return network.to(dtype), tokenizer


def _embedding_of_a_model(name: str, spec: ModelSpec) -> tuple[torch.Tensor, Any | None]:
    """What the embedding module of a model returns for each token, `[V, d]`, and the model's tokenizer."""
    subject = probekit.load(
        name,
        revision=spec.revision,
        weights=spec.weights,
        weights_seed=spec.weights_seed,
        trust_remote_code=spec.trust_remote_code,
    )
    return subject.embedding_matrix, subject.tokenizer


def count_parameters(kind: str, tokens: int | None, vocabulary: int, width: int) -> int:
    """`V·d + n·4n + 4n + 4n·m + m`, where m is 4n or n: the embedding, and two linear layers with biases."""
    entries, inner, outer = sizes(kind, tokens, width)
    return vocabulary * width + entries * inner + inner + inner * outer + outer


def _check_memory(wanted: Wanted, spec: ModelSpec, vocabulary: int, width: int, dtype: torch.dtype) -> None:
    parameters = count_parameters(wanted.kind, wanted.tokens, vocabulary, width)
    needed = parameters * max(4, dtype.itemsize)  # they are drawn in fp32
    available = memory_available()
    if available is None or needed <= available:
        return
    shrink = ["an embedding of a smaller width" if wanted.width is None else "a smaller width"]
    if wanted.tokens is not None:
        shrink.insert(0, f"fewer tokens than {wanted.tokens}")
    if wanted.width is not None:
        shrink.append(f"a smaller vocabulary than {vocabulary}")
    raise ModelError(
        f"'{spec.name}' would have {parameters:,} parameters, {needed / 1e9:,.1f} GB while it is made, and "
        f"{available / 1e9:,.1f} GB of memory are free; give it {' or '.join(shrink)}."
    )


def memory_available() -> int | None:
    """Bytes of memory that are free (of a container, all that it may take; elsewhere than on Linux, all that there is),
    or None where the system does not say.
    """
    limits: list[int] = []
    for path, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024),
        ("/sys/fs/cgroup/memory.max", r"^(\d+)$", 1),
    ):
        with suppress(OSError):
            limits += [unit * int(number) for number in re.findall(pattern, Path(path).read_text(encoding="utf-8"))]
    with suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)
