"""A run goes on where a device map has to be another one, and not on another kind of device, or with another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.errors import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("elsewhere") / "run"
    made = probekit.run(
        model={"name": "demo", "device_map": "auto"}, options={"steps": 1, "restarts": 1}, output=output
    )
    assert made.status == "done"
    return output


def begun_on(run: Path, device: Any, **facts: Any) -> None:
    """As if the run had been begun there, and stopped."""
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    manifest["model"] |= {"device": device, **facts}
    manifest["status"] = "interrupted"
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("device", ["cpu", {"transformer": "cpu", "lm_head": "disk"}], ids=str)
def test_a_run_goes_on_with_another_device_map(run: Path, device: Any) -> None:
    begun_on(run, device)
    assert probekit.resume(run).status == "done"


@pytest.mark.parametrize("device", ["cuda:0", {"transformer": "0", "lm_head": "cpu"}], ids=str)
def test_a_run_does_not_go_on_with_another_kind_of_device(run: Path, device: Any) -> None:
    begun_on(run, device)
    with pytest.raises(UsageError, match="is not the one that the run was begun with"):
        probekit.resume(run)


def test_a_run_does_not_go_on_with_other_weights(run: Path) -> None:
    begun_on(run, "cpu", weights_sha256="0" * 64)
    with pytest.raises(UsageError, match="is not the one that the run was begun with"):
        probekit.resume(run)
