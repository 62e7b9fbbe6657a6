"""Description: what a model is and what it takes, told before its weights are loaded. Plain data, and text of it."""

from probekit.description.describe import describe
from probekit.description.text import as_text

__all__ = ["as_text", "describe"]
