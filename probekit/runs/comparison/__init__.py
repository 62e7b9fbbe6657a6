"""Runs side by side, from what they saved: no model, no torch, no plugin."""

from probekit.runs.comparison.outcome import Comparison, compare
from probekit.runs.comparison.with_random import TrainedAndRandom, check_trained, run_trained_and_random

__all__ = ["Comparison", "TrainedAndRandom", "check_trained", "compare", "run_trained_and_random"]
