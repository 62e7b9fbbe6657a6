"""A model of the hub by its name, from a cache folder, without a network: `--model gpt2-xl`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.data
COMMIT = "15ea56dee5df4983c59b2538573817e1667135e2"


@pytest.fixture(scope="module")
def hub(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF_HOME with gpt2-xl: all its 48 blocks, but narrow, with random weights and GPT-2's own tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    home = tmp_path_factory.mktemp("huggingface")
    repository = home / "hub" / "models--gpt2-xl"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(n_layer=48, n_head=25, n_embd=50))
    model.save_pretrained(snapshot)
    for file in (data_folder / "tokenizers" / "gpt2").iterdir():
        shutil.copy(file, snapshot)
    return home


def test_gpt2_xl_runs_offline_by_name(hub: Path, probekit_process: Any, tmp_path: Path) -> None:
    ended = probekit_process(
        "run",
        *("--model", "gpt2-xl", "--plugin", "gradient-inverter", "-o", "steps=3", "-o", "restarts=2"),
        *("--output", tmp_path / "run", "--json"),
        environment={"HF_HUB_CACHE": str(hub / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["analyses"]["gradient-inverter"]["status"] == "done"
    manifest = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert manifest["configuration"]["model"]["name"] == "gpt2-xl"
    assert manifest["model"]["source"] == "hub"
    assert manifest["model"]["revision"] == COMMIT
    assert manifest["model"]["architecture"] == "GPT2LMHeadModel"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert COMMIT in report
    assert str(hub) not in report


LOAD = """
import json, sys
import probekit

def outcome(*name, **options):
    try:
        subject = probekit.load(*name, **options)
    except probekit.ProbekitError as error:
        return [error.exit_code, str(error)]
    return [len(subject.anatomy.blocks), subject.facts.get("revision"), subject.tokens(subject.encode(" sky"))]

print(json.dumps({
    "by commit": outcome("gpt2-xl", revision=sys.argv[1], depth=2),
    "random": outcome("gpt2-xl", weights="random", depth=1),
    "other revision": outcome("gpt2-xl", revision="other"),
    "other model": outcome("gpt2-huge"),
}))
"""


def test_revisions_and_names_that_are_not_in_the_cache_are_sentences(hub: Path, probekit_process: Any) -> None:
    ended = probekit_process(COMMIT, code=LOAD, environment={"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"})
    assert ended.code == 0, ended.err
    outcomes = json.loads(ended.out)
    assert outcomes["by commit"] == [2, COMMIT, [" sky"]]
    assert outcomes["random"] == [1, None, [" sky"]]
    for what, name in (("other revision", "gpt2-xl"), ("other model", "gpt2-huge")):
        code, sentence = outcomes[what]
        assert code == 4
        assert sentence.startswith(f"'{name}' is no folder here and not in the hub's cache"), sentence
        assert "HF_HUB_OFFLINE" in sentence
