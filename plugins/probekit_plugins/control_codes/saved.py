"""The fine-tuned model as a folder that transformers, and `probekit run --model`, load."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig
from transformers.utils import logging

if TYPE_CHECKING:
    from probekit import Subject

FOLDER = "fine-tuned"


def files(subject: Subject) -> dict[str, bytes]:
    """Its config, weights and tokenizer, by their paths in a result."""
    model: Any = subject.model
    with tempfile.TemporaryDirectory() as folder, _quietly(), _valid_settings(model):
        model.save_pretrained(folder, max_shard_size="1000GB")
        if subject.tokenizer is not None:
            subject.tokenizer.save_pretrained(folder)
        found = {
            path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()
        }
        return {f"{FOLDER}/{name}": path.read_bytes() for name, path in found.items()}


@contextmanager
def _valid_settings(model: Any) -> Iterator[None]:
    """With the model's own generation settings only if transformers saves them: it refuses those that contradict each
    other, which many a published model has.
    """
    own = getattr(model, "generation_config", None)
    try:
        if own is not None:
            own.validate(strict=True)
    except ValueError:
        tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**tokens)
    try:
        yield
    finally:
        if own is not None:
            model.generation_config = own


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own progress bar, which would be drawn among the run's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
