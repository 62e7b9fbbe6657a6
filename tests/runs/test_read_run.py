"""Reading a run back: its results, failures and manifest, and a sentence where it is no run or a damaged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import probekit


@pytest.fixture(scope="module")
def run(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> probekit.Run:
    """Two analyses, of which one failed. Copy its folder before changing a file."""
    from probekit_plugins.gradient_inverter import GradientInverter

    output = tmp_path_factory.mktemp("read") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientInverter, "run", lambda *_: 1 / 0)
        return probekit.run(
            model=tiny_gpt2(),
            plugins=["pseudo-inverse", "gradient-inverter"],
            prompts=["The sky is blue.", "Once"],
            output=output,
        )


@pytest.fixture
def copied(run: probekit.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copy"))


def test_a_run_read_back_is_what_the_run_came_to(run: probekit.Run) -> None:
    for found in (probekit.read_run(run.path), probekit.read_run(str(run.path))):
        assert (found.path, found.status, found.report_path) == (run.path, "failed", run.path / "report.html")
        assert found.failures == run.failures == {"gradient-inverter": "ZeroDivisionError: division by zero"}
        assert list(found.results) == ["pseudo-inverse"]
        assert found.results["pseudo-inverse"].encode() == run.results["pseudo-inverse"].encode()
        assert found.manifest == run.manifest == json.loads((run.path / "run.json").read_text(encoding="utf-8"))
        assert found.manifest["prompts"][1]["text"] == "Once"
        assert found.document() == run.document()
        with pytest.raises(probekit.AnalysisError, match="gradient-inverter: ZeroDivisionError"):
            _ = found.result


def test_an_analysis_that_is_not_done_is_neither_a_result_nor_a_failure(copied: Path) -> None:
    document = json.loads((copied / "run.json").read_text(encoding="utf-8"))
    document["status"] = "interrupted"
    document["analyses"]["gradient-inverter"] = {"status": "interrupted"}
    (copied / "run.json").write_text(json.dumps(document), encoding="utf-8")
    found = probekit.read_run(copied)
    assert (found.status, found.failures, list(found.results)) == ("interrupted", {}, ["pseudo-inverse"])


def test_where_there_is_no_run_a_sentence_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(probekit.UsageError, match=r"is no run directory: it has no run\.json\.$"):
            probekit.read_run(path)


def without(key: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        document = json.loads(content)
        del document[key]
        return json.dumps(document).encode()

    return change


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    "a manifest that was cut off": ("run.json", lambda content: content[:100]),
    "a manifest that is a list": ("run.json", lambda _: b"[]"),
    "a manifest without a status": ("run.json", without("status")),
    "a manifest without analyses": ("run.json", without("analyses")),
    "a manifest whose analyses are a list": ("run.json", lambda _: b'{"schema": 1, "status": "done", "analyses": [1]}'),
    "a manifest of another version": ("run.json", lambda _: b'{"schema": 99}'),
    "a result that was cut off": ("analyses/pseudo-inverse/result.json", lambda content: content[:100]),
    "a result that is gone": ("analyses/pseudo-inverse/result.json", lambda _: None),
    "a result without metrics": ("analyses/pseudo-inverse/result.json", without("metrics")),
    "tensors that were cut off": ("analyses/pseudo-inverse/tensors.safetensors", lambda content: content[:100]),
    "tensors that are gone": ("analyses/pseudo-inverse/tensors.safetensors", lambda _: None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_a_sentence_that_names_the_file(kind: str, copied: Path) -> None:
    name, damage = DAMAGE[kind]
    content = damage((copied / name).read_bytes())
    (copied / name).unlink()
    if content is not None:
        (copied / name).write_bytes(content)
    with pytest.raises(probekit.UsageError) as raised:
        probekit.read_run(copied)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert "schema" in sentence or Path(name).name in sentence
