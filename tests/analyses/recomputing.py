"""Whether the figures of a saved run follow from its tensors."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from probekit import Plugins
from probekit.runs.config import read_config, resolve
from probekit.runs.directory import RunDirectory
from probekit.runs.recompute import recompute


def assert_figures_follow(run: Path, name: str, left_out: Collection[str] = ()) -> None:
    """Every metric, every cell of every table and the finding of an analysis come out again from its tensors, token
    sequences and files, but for what is `left_out`.
    """
    resolved = resolve([("config.toml", read_config(run / "config.toml"))], Plugins())
    analysis = resolved.analyses[name](resolved.options[name])
    found = recompute(analysis, RunDirectory.open(run).result(name))
    assert found.different == []
    assert sorted(found.left_out) == sorted(left_out)
    assert found.equal > 0
