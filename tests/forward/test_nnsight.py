"""What a subject captures at its blocks is what nnsight saves there, bit for bit.

nnsight traces each model in a process of its own, `python -m tests.forward.test_nnsight FILE`: importing it gives every
object a method `save`, and wrapping a model replaces the `forward` of its modules for good.
"""

from __future__ import annotations

import subprocess
import sys
from functools import reduce
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import probekit
from tests.forward.survey import IDS
from tests.forward.test_hidden_states import ARCHITECTURES
from tests.forward.tiny import named

ROOT = Path(__file__).parents[2]

Activations = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved_by_nnsight(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    """The output of every block of every architecture, as `{name of the architecture}.{module path}`."""
    if find_spec("nnsight") is None:
        pytest.skip("nnsight, an independent peer, is not installed; `pip install nnsight` adds the comparison.")
    file = tmp_path_factory.mktemp("nnsight") / "activations.safetensors"
    command = [sys.executable, "-m", "tests.forward.test_nnsight", str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return load_file(file)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_blocks_are_what_nnsight_saves(name: str, saved_by_nnsight: Activations) -> None:
    subject = probekit.Subject(model_of(name))
    saved = {key: value for key, value in saved_by_nnsight.items() if key.startswith(f"{name}.")}
    paths = [f"{subject.anatomy.blocks_path}.{index}" for index in range(len(subject.anatomy.blocks))]
    assert sorted(saved) == sorted(f"{name}.{path}" for path in paths)
    captured = subject.capture(IDS, [f"block.{index}" for index in range(len(paths))])
    for path, activation in zip(paths, captured.values(), strict=True):
        assert bool(torch.isfinite(activation).all())
        assert torch.equal(activation, saved[f"{name}.{path}"]), path
    for one, other in combinations(saved.values(), 2):
        assert not torch.equal(one, other)


def model_of(name: str) -> nn.Module:
    return named(name)


def save_all(file: Path) -> None:
    """Trace every architecture with nnsight and save what its blocks return. Nothing of probekit is used."""
    from nnsight import NNsight, save

    activations: Activations = {}
    for name in ARCHITECTURES:
        model = model_of(name)
        # The first list of modules in each of these models is its list of blocks.
        path = next(path for path, module in model.named_modules() if isinstance(module, nn.ModuleList))
        traced = NNsight(model)
        with traced.trace(input_ids=IDS, use_cache=False):
            outputs = save([block.output for block in reduce(getattr, path.split("."), traced)])
        for index, output in enumerate(outputs):
            activation = output if isinstance(output, torch.Tensor) else output[0]
            activations[f"{name}.{path}.{index}"] = activation.contiguous()
    save_file(activations, file)


if __name__ == "__main__":
    save_all(Path(sys.argv[1]))
