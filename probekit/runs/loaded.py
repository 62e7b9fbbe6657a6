"""What the analyses of a run work on: a loaded model and its prompts, or a recording in place of both."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probekit.analysis import Prompt
from probekit.plugins import Plugins
from probekit.runs.config import RunConfig
from probekit.runs.profiling import PROMPTS, phase
from probekit.runs.prompts import encode_prompts

if TYPE_CHECKING:
    from probekit.activations import ActivationSource, Recording
    from probekit.runs.subjects import Subjects
    from probekit.subject import Subject

# A manifest names so many prompts; the configuration has them all.
PROMPTS_NAMED = 200


@dataclass
class Loaded:
    """A source of activations; with the subject and the prompts where the model is there.

    `facts` go into the run's manifest. `again` loads the subject anew, for when an analysis has written into weights.
    """

    source: ActivationSource
    facts: dict[str, Any] = field(default_factory=dict)
    subject: Subject | None = None
    prompts: Sequence[Prompt] = ()
    again: Callable[[], Loaded] | None = None


def load(config: RunConfig, plugins: Plugins, subjects: Subjects | None = None) -> Loaded:
    """The model and the prompts that a configuration names, or its recording; everything in it is checked.

    `subjects` may hold that model already. Raises ModelError if the model does not load, UsageError for a prompt that
    it does not take, or a bad recording.
    """
    return _recorded(config.activations) if config.activations is not None else _live(config, plugins, subjects)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """An interrupt waits until this is over: in the middle of torch's import it can end the process without a word."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(config: RunConfig, plugins: Plugins, subjects: Subjects | None = None) -> Loaded:
    with _interrupts_held():
        from probekit.activations import LiveActivations
        from probekit.subject import load_spec

    take = load_spec if subjects is None else subjects.take
    subject = take(config.model, plugins)
    with phase(PROMPTS):
        prompts = encode_prompts(subject, config)
    source = LiveActivations(subject, lambda: (prompt.input_ids[0].tolist() for prompt in prompts), len(prompts))
    named = [{"text": prompt.text, "tokens": prompt.tokens} for prompt in prompts[:PROMPTS_NAMED]]
    facts = {"model": subject.facts, "prompts": named, "prompt_count": len(prompts)}
    return Loaded(source, facts, subject, prompts, lambda: _live(config, plugins))


def _recorded(path: str) -> Loaded:
    from probekit.activations import Recording

    recording = Recording(path)
    named = [{"text": "".join(tokens), "tokens": tokens} for tokens in recording.first_prompts(PROMPTS_NAMED)]
    facts = {
        "model": dict(recording.facts),
        "prompts": named,
        "prompt_count": recording.prompt_count,
        "recording": _known(recording),
    }
    return Loaded(recording, facts)


def _known(recording: Recording) -> dict[str, Any]:
    """What tells a recording from another: how much it holds, and the hash of its index, which has those of its
    shards.
    """
    return {
        "path": str(recording.path),
        "sites": recording.sites,
        "tokens": recording.tokens,
        "sha256": recording.digest,
    }
