"""What a worker needs, as it is declared to Ray: cores, GPUs and memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from probekit.errors import UsageError
from probekit.models.spec import ModelSpec

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Needs:
    """One worker's: cores (as many threads it computes with), GPUs (0.5: two workers share one), bytes of memory."""

    cpus: int
    gpus: float = 0.0
    memory: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{_number(number)} {what}" for what, number in self.amounts().items())

    def amounts(self) -> dict[str, float]:
        """By the words for them; of what is not needed nothing."""
        named = {"CPU": float(self.cpus), "GPU": self.gpus, "GB of memory": self.memory / 1e9}
        return {what: number for what, number in named.items() if number}

    def fitting(self, there: Mapping[str, float]) -> int:
        """How many such workers Ray's resources have room for, taken together."""
        needed = {"CPU": float(self.cpus), "GPU": self.gpus, "memory": float(self.memory)}
        return min(int(there.get(what, 0.0) / number + 1e-6) for what, number in needed.items() if number)


def gpus_of(models: Iterable[ModelSpec], there: float) -> float:
    """How many GPUs a worker needs that may get any of these models, if nobody says: one where a model is put on CUDA,
    or where it may use one (a device map, a quantisation) and the cluster has any.
    """
    for spec in models:
        if (spec.device or "").startswith("cuda"):
            return 1.0
        if there >= 1 and spec.device is None and (spec.device_map is not None or spec.quantization is not None):
            return 1.0
    return 0.0


def parse_memory(text: str) -> int:
    """`12GiB` or `500 MB` in bytes. Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UsageError(f"The memory of a worker is '{text}'; expected a number and a unit, such as 12GiB.")
    return size


def _number(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"
