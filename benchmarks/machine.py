"""What a figure was measured with and on: nothing that names the machine, everything that explains its times."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("probekit", "torch", "transformers", "accelerate", "numpy")
PEERS = ("nnsight", "transformer-lens", "pyvene", "sae-lens")


def conditions() -> dict[str, str | int | float]:
    """The date, the processor, how busy it was before, threads and versions."""
    facts: dict[str, str | int | float] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **{package: installed(package) for package in PEERS},
    }
    if hasattr(os, "getloadavg"):
        facts["load before"] = round(os.getloadavg()[0], 2)
    return facts


def installed(package: str) -> str:
    """The version of a peer, or that it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name and what is wider than usual about it, as far as the system says."""
    described = Path("/proc/cpuinfo")
    if not described.is_file():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in described.read_text(encoding="utf-8").splitlines())
    facts = {what.strip(): value.strip() for what, _, value in lines}
    widest = next((name for name in ("avx512f", "avx2") if name in facts.get("flags", "").split()), "")
    name = facts.get("model name", platform.machine())
    return f"{name} ({widest.upper()})" if widest else name
