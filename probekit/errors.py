"""Errors as sentences, each with the exit code that the command line gives it.

A message says what was wrong, what was expected and what to do. Anything else that is raised is a bug, and shows its
traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ProbekitError(Exception):
    """What a user can mend. `exit_code` is the status that the command line ends with."""

    exit_code = 1


class AnalysisError(ProbekitError):
    """An analysis could not be carried out (exit code 1)."""


class UsageError(ProbekitError):
    """A wrong request: unknown option, site or plugin, a bad value, a bad prompt or output directory (exit code 2)."""

    exit_code = 2


class PluginError(ProbekitError):
    """A requested plugin did not load (exit code 3)."""

    exit_code = 3


class ModelError(ProbekitError):
    """A model did not load, or is not one that probekit can read (exit code 4)."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' with the nearest known word, or an empty string if none is near."""
    match = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""
