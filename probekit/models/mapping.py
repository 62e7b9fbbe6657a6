"""Mapped weights: tensors whose memory is a file's, which the system reads and drops as it needs to."""

from __future__ import annotations

from pathlib import Path

import torch


def mapped_files() -> list[tuple[int, int]]:
    """Addresses of this process behind which there is a file of weights; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    # A file that goes with the process has no name any more.
    named = [line for line in lines if line.removesuffix(" (deleted)").endswith(".safetensors")]
    ranges = [line.split(maxsplit=1)[0].split("-") for line in named]
    return [(int(start, 16), int(end, 16)) for start, end in ranges]


def is_mapped(tensor: torch.Tensor, ranges: list[tuple[int, int]]) -> bool:
    """Whether a tensor's memory is in one of these."""
    if tensor.is_meta or tensor.device.type != "cpu":
        return False
    return any(start <= tensor.data_ptr() < end for start, end in ranges)
