"""Batches of activations, made by hand or captured, and analyses of them: what the tests of such analyses share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import probekit

PROMPTS = [[5, 17, 2, 40, 8, 33], [9, 1], [22, 31, 7, 50], [3, 3, 3, 41, 12], [14], [6, 28, 19]]


def batch(activations: Mapping[str, torch.Tensor], *, first: int = 0) -> probekit.ActivationBatch:
    """A batch of prompts of one length, with the activations `[batch, sequence, …]`; token ids count up."""
    some = next(iter(activations.values()))
    shape = some.shape[:2]
    ids = torch.arange(shape[0] * shape[1]).view(shape)
    numbers = torch.arange(first, first + shape[0])
    mask = torch.ones(shape, dtype=torch.bool)
    return probekit.ActivationBatch(activations, ids, mask, numbers, lambda ids: [f"t{index}" for index in ids])


def one_by_one(subject: probekit.Subject, site: str, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[torch.Tensor]:
    """The activations `[tokens, width]` of each prompt, captured alone, in float64."""
    captured = (subject.capture(torch.tensor([list(ids)]), [site])[site] for ids in prompts)
    return [activation[0].flatten(1).double() for activation in captured]


def analysed(analysis: probekit.ActivationAnalysis[Any], *batches: probekit.ActivationBatch) -> probekit.Result:
    """The result, which can be saved."""
    for each in batches:
        analysis.update(each)
    result = analysis.finish()
    result.encode()
    return result


def ran(
    analysis: probekit.ActivationAnalysis[Any],
    subject: probekit.Subject,
    prompts: Sequence[Sequence[int]] = PROMPTS,
) -> probekit.Result:
    """The result of a pass over prompts of token ids."""
    checked = [subject.check_ids(list(ids)) for ids in prompts]
    result = analysis.run(subject, [probekit.Prompt("", ids, subject.tokens(ids)) for ids in checked])
    result.encode()
    return result


def drawn(analysis: probekit.Analysis[Any], result: probekit.Result, folder: Path) -> list[dict[str, Any]]:
    """The blocks of the page, from the result as it is read back from disk."""
    for name, content in result.encode().items():
        (folder / name).write_bytes(content)
    page = probekit.Page(analysis.name)
    analysis.report(probekit.Result.read(folder), page)
    json.dumps(page.to_json(), allow_nan=False)
    return page.blocks
