"""Where time and memory of a run went: `probekit run --profile`.

Phases with their processor time and memory, loops with the distribution of their steps, packages by what importing them
took, and the operators and modules of a few steps. Nothing of it touches the model: no hooks, and no other numbers.
"""

from probekit.runs.profiling.current import current, phase, profiling
from probekit.runs.profiling.keeping import (
    PROFILE_FILE,
    check_profile,
    keep_profile,
    profile_model,
    profile_page,
    profile_sentence,
    weigh,
)
from probekit.runs.profiling.loops import context_class, timed_progress
from probekit.runs.profiling.phases import CHECKS, DRAWING, LOADING, OPTIONS, PASSES, PROMPTS, SAVING

__all__ = [
    "CHECKS",
    "DRAWING",
    "LOADING",
    "OPTIONS",
    "PASSES",
    "PROFILE_FILE",
    "PROMPTS",
    "SAVING",
    "check_profile",
    "context_class",
    "current",
    "keep_profile",
    "phase",
    "profile_model",
    "profile_page",
    "profile_sentence",
    "profiling",
    "timed_progress",
    "weigh",
]
