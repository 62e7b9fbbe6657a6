"""Models and texts that benchmarks read from the folder of test data, and prompts cut out of them or drawn."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import probekit
from probekit_plugins.texts import beginning, begun, ids_of_file, spread_over

FOLDER = "PROBEKIT_TEST_DATA"
STORIES = "texts/tinystories_197k.txt"
PLAYS = "texts/tinyshakespeare.txt"


def data(path: str) -> Path | None:
    """A file or folder of the test data, or None if it is not there."""
    folder = os.environ.get(FOLDER) or Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(folder) / path
    return found if found.exists() else None


def missing(path: str) -> str:
    """The sentence that says what is left out."""
    return f"Left out: there is no {path} in the folder of test data; name that folder in {FOLDER}."


def cut(subject: probekit.Subject, text: Path, count: int, tokens: int) -> torch.Tensor:
    """Pieces of a text, evenly spread, `[count, tokens]`, with what the tokenizer puts before a text counted."""
    own = tokens - len(beginning(subject))
    ids = torch.tensor(ids_of_file(subject, str(text), "text"))
    return begun(subject, spread_over(ids[: len(ids) // own * own].view(-1, own), count))


def drawn(subject: probekit.Subject, count: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Uniformly random tokens, `[count, tokens]`, after what the tokenizer puts before a text."""
    own = tokens - len(beginning(subject))
    generator = torch.Generator().manual_seed(seed)
    return begun(subject, torch.randint(0, subject.vocabulary, (count, own), generator=generator))
