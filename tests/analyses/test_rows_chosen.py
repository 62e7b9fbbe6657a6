"""Analyses where an estimate finds room for some of the rows: they find the same, and say how many rows it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import probekit
from probekit.description import fitting
from probekit.testing import prompts, tiny_subject
from probekit_plugins.clamped_walk import ClampedWalk, ClampedWalkOptions
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.null_space_walk import NullSpaceWalk, NullSpaceWalkOptions

WALK = {"steps": 2, "walkers": 4, "noise_draws": 2, "sites": "block.1"}
INVERSION = {"steps": 3, "restarts": 4, "next_token": False, "record_every": 2, "loss": "l2"}
ANALYSES: dict[str, Any] = {
    "inverter": (GradientInverter, GradientInverterOptions, {**INVERSION, "sites": "block.0,norm"}),
    "inverter with a head": (GradientInverter, GradientInverterOptions, {**INVERSION, "head": "model"}),
    "sites together": (
        GradientInverter,
        GradientInverterOptions,
        {**INVERSION, "sites": "blocks", "share_pass": "yes"},
    ),
    "clamped walk": (ClampedWalk, ClampedWalkOptions, WALK),
    "null-space walk": (NullSpaceWalk, NullSpaceWalkOptions, {**WALK, "iterations": 4, "correction_iterations": 3}),
}
CHOSEN = "rows were computed at once where memory might not have held all of them"


def found(name: str, **limit: Any) -> probekit.Result:
    kind, options, given = ANALYSES[name]
    subject = tiny_subject()
    subject.max_memory = dict(limit)
    subject.model.double()
    result: probekit.Result = kind(options(**given), probekit.Context()).run(subject, prompts(subject, "abcd", "xyz"))
    return result


def rows(result: probekit.Result) -> list[str]:
    return [note.partition(" rows")[0] for note in result.notes if CHOSEN in note]


@pytest.mark.parametrize("name", ANALYSES)
def test_what_is_found_does_not_depend_on_what_is_free_but_the_note_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty = found(name)
    assert rows(plenty) == []
    for free, chosen in ((0, ["1"]), (2**19, None)):
        monkeypatch.setattr(fitting, "free", lambda device, free=free: free)
        little = found(name)
        assert len(rows(little)) == 1
        if chosen:
            assert rows(little) == chosen
        assert not any("Memory ran out" in note for note in little.notes)
        for key, tensor in plenty.tensors.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(little.tensors[key], tensor, rtol=1e-4, atol=1e-6, msg=key)


def test_the_memory_of_a_device_bounds_a_batch_where_there_is_more() -> None:
    assert rows(found("inverter")) == []
    assert rows(found("inverter", cpu=1)) == ["1"]
    assert rows(found("inverter", cpu=2**40)) == []
