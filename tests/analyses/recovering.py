"""Tiny models, and what the exact inverter makes of activations, without a run: what its tests share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probekit
from probekit_plugins.exact_inverter import ExactInverter, ExactInverterOptions
from probekit_plugins.exact_inverter.recovery import Inverter, Recovery
from probekit_plugins.exact_inverter.targets import Target, captured
from probekit_plugins.exact_inverter.verdict import Status
from probekit_plugins.token_likelihood import TokenLikelihood

PROMPT = [25, 37, 23, 44, 29, 50, 28, 41]
OTHER = [31, 22, 45, 27, 33, 26, 48, 24]
SITE = "block.1"
VOCABULARY = 60


def gpt2(dtype: torch.dtype = torch.float32, *, seed: int = 0, **settings: Any) -> probekit.Subject:
    """Two blocks of width 32, a vocabulary of 60 and a context of 16, of random weights."""
    sizes = {
        "vocab_size": VOCABULARY,
        "n_positions": 16,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**{**sizes, **settings}, bos_token_id=0, eos_token_id=0))
    return probekit.Subject(model.to(dtype).eval())


def llama(dtype: torch.dtype = torch.float32, *, seed: int = 0, **settings: Any) -> probekit.Subject:
    """The same of another kind, whose head is not the embedding."""
    sizes = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **settings}, bos_token_id=0, eos_token_id=0))
    return probekit.Subject(model.to(dtype).eval())


def inverter(subject: probekit.Subject, site: str = SITE, length: int = 8, **options: Any) -> Inverter:
    """An inverter that has learnt from few prompts, once for each subject and site."""
    learnt = vars(subject).setdefault("_learnt_by_tests", {})

    def samples() -> Sequence[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        longest = min(length, subject.context or length)
        return [torch.randint(subject.vocabulary, (48, max(2, longest)), generator=generator)]

    made = Inverter(subject, site, samples, ExactInverterOptions(**options), probekit.Context())
    if site not in learnt:
        learnt[site] = (
            made.likelihood,
            Inverter(subject, site, samples, ExactInverterOptions(), probekit.Context()).error,
        )
    likelihood, error = learnt[site]
    made.__dict__ |= {"likelihood": likelihood, "error": options.get("tolerance") or error}
    return made


def prompt_of(subject: probekit.Subject, ids: Sequence[int]) -> probekit.Prompt:
    checked = subject.check_ids(list(ids))
    return probekit.Prompt("", checked, subject.tokens(checked))


def target_of(subject: probekit.Subject, ids: Sequence[int], site: str = SITE) -> Target:
    """The activations of a prompt, all of them known."""
    return captured(subject, prompt_of(subject, ids), site, torch.ones(len(ids), dtype=torch.bool))


def given(target: Target, activations: torch.Tensor) -> Target:
    """Other activations of the same prompt: those that are not finite are unknown, as in a file."""
    known = torch.isfinite(activations).all(-1)
    return replace(target, activations=torch.where(known[:, None], activations, 0), known=known)


def without(target: Target, *positions: int) -> Target:
    """The same with these positions unknown."""
    activations = target.activations.clone()
    activations[list(positions)] = torch.nan
    return given(target, activations)


def recover(subject: probekit.Subject, target: Target, site: str = SITE, **options: Any) -> Recovery:
    [recovery] = inverter(subject, site, **options).recover([target])
    return recovery


def statuses(recovery: Recovery) -> list[str]:
    return [verdict.status.value for verdict in recovery.verdicts]


def verified(recovery: Recovery) -> dict[int, int]:
    """Position → token, of those that are verified."""
    return {
        position: token
        for position, (token, verdict) in enumerate(zip(recovery.ids, recovery.verdicts, strict=True))
        if verdict.status == Status.VERIFIED
    }


def wrong(recovery: Recovery, ids: Sequence[int]) -> dict[int, int]:
    """What is verified and is not of the prompt."""
    return {position: token for position, token in verified(recovery).items() if token != ids[position]}


def run(subject: probekit.Subject, *prompts: Sequence[int], seed: int = 0, **options: Any) -> probekit.Result:
    """The analysis itself."""
    analysis = ExactInverter(ExactInverterOptions(**options), probekit.Context(seed))
    return analysis.run(subject, [prompt_of(subject, ids) for ids in prompts])


def few_samples(patch: pytest.MonkeyPatch) -> None:
    """Whole runs learn, and measure themselves, on little."""
    patch.setattr("probekit_plugins.token_likelihood.POSITIONS", 256)
    patch.setattr("probekit_plugins.exact_inverter.tolerance.POSITIONS", 32)


@contextmanager
def forwards(subject: probekit.Subject) -> Iterator[list[tuple[int, int]]]:
    """The rows and positions of each run of the first block."""
    seen: list[tuple[int, int]] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        rows, positions, *_ = (output if isinstance(output, torch.Tensor) else output[0]).shape
        seen.append((rows, positions))

    handle = subject.anatomy.blocks[0].register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def scoring(inverter: Inverter, change: Callable[[torch.Tensor], torch.Tensor]) -> Inverter:
    """An inverter whose tokens are scored otherwise."""

    class Changed(TokenLikelihood):
        def scores(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
            return change(super().scores(*arguments, **keywords))

    return _with(inverter, Changed)


def guessing(inverter: Inverter, ids: Sequence[int]) -> Inverter:
    """An inverter that takes these tokens for the likeliest, and then those of the lowest ids."""

    class Told(TokenLikelihood):
        def scores(self, activations: torch.Tensor, first: int = 0, end: int | None = None) -> torch.Tensor:
            scores = -torch.arange(float(VOCABULARY)).repeat(len(ids), 1)
            scores[range(len(ids)), list(ids)] = 1.0
            return scores[first:end]

    return _with(inverter, Told)


def _with(inverter: Inverter, kind: type[TokenLikelihood]) -> Inverter:
    changed = copy.copy(inverter.likelihood)
    changed.__class__ = kind
    inverter.__dict__["likelihood"] = changed
    return inverter
