"""The versions of what decides the bits of a run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from probekit.plugins import Plugins

PACKAGES = (
    "probekit",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "tokenizers",
    "pluggy",
    "numpy",
)


def versions(plugins: Plugins) -> dict[str, str]:
    """Of Python, of the packages that compute, and of each plugin's distribution."""
    found = {"python": platform.python_version()}
    for package in [*PACKAGES, *sorted({record.distribution for record in plugins.records if record.distribution})]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
