"""Memory that really runs out: a process that may take only so much more, and what becomes of its run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import probekit
from probekit.runs.out_of_memory import sentence

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads and limits memory as Linux does")

# One short run, so that everything is imported and made that a run needs anyway; from then on so many bytes more.
LIMITED = """
import resource, sys
import probekit
from probekit.cli import main
small, folder, more = sys.argv[1:4]
probekit.run(model=small, input_ids=[[1, 2, 3]], options={"steps": 1}, output=folder)
taken = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(more), resource.RLIM_INFINITY))
sys.argv = ["probekit", *sys.argv[4:]]
main()
"""
MEBIBYTE = 1 << 20
# One row of so many tokens through six blocks keeps about 33 MiB.
TOKENS = 1024
IDS = [1 + number % 90 for number in range(TOKENS)]
LONG: dict[str, Any] = {"n_positions": TOKENS, "n_layer": 6, "n_embd": 64, "n_head": 4}


@pytest.fixture
def limited(probekit_process: Callable[..., Any], tiny_gpt2: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """`limited(bytes, "run", …)`: the command line in a process that may take so many bytes more than it has."""

    def call(more: int, *arguments: object) -> Any:
        # One thread: the stacks of others, and what they allocate for themselves, would be limited as well.
        environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        small, folder = tiny_gpt2(), tmp_path / "small"
        return probekit_process(small, folder, more, *arguments, code=LIMITED, environment=environment)

    return call


def inverted(model: Path, folder: Path, *options: str) -> list[object]:
    chosen = [word for option in ("steps=1", "next_token=false", *options) for word in ("-o", option)]
    ids = ",".join(map(str, IDS))
    return ["run", "--model", model, "--input-ids", ids, "--output", folder, "-o", "sites=block.-1", *chosen]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_batch_that_does_not_fit_is_split_and_finds_what_such_batches_find(
    limited: Callable[..., Any], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    model, folder = tiny_gpt2(**LONG), tmp_path / "limited"
    # Told how many rows to begin with, it makes no estimate of its own.
    ended = limited(110 * MEBIBYTE, *inverted(model, folder, "restarts=4", "rows_at_once=4"))
    assert ended.code == 0, ended.err
    found = read(folder / "analyses/gradient-inverter/result.json")
    (note,) = (note for note in found["notes"] if note.startswith("Memory ran out"))
    rows = int(re.findall(r"rows_at_once=(\d+)", note)[0])
    assert 1 <= rows < 4
    assert note in (folder / "report.html").read_text(encoding="utf-8")
    options = {"sites": "block.-1", "steps": 1, "next_token": False, "restarts": 4, "rows_at_once": rows}
    probekit.run(model=str(model), input_ids=[IDS], options=options, output=tmp_path / "unlimited")
    wanted = load_file(tmp_path / "unlimited/analyses/gradient-inverter/tensors.safetensors")
    tensors = load_file(folder / "analyses/gradient-inverter/tensors.safetensors")
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        assert tensor.allclose(wanted[name], rtol=1e-4, atol=1e-5), name


def test_a_row_that_does_not_fit_ends_in_a_sentence_of_what_each_option_saves(
    limited: Callable[..., Any], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    model, folder = tiny_gpt2(**LONG), tmp_path / "limited"
    ended = limited(34 * MEBIBYTE, *inverted(model, folder, "restarts=2"))
    assert ended.code == 1, ended.err
    manifest = read(folder / "run.json")
    assert manifest["status"] == "failed"
    said = manifest["analyses"]["gradient-inverter"]["error"]
    assert said in ended.err
    assert re.fullmatch(
        r"Out of memory at block\.5, with one row at once \(another [\d.]+ [MK]iB could not be had\): "
        r"the gradient of one row of 1024 tokens keeps about (?P<kept>\d+) MiB up to block\.5, "
        r"the weights are mapped from their file and need no memory, and [\d.]+ [MK]iB are free on cpu; "
        r"--dtype bfloat16 saves about \d+ MiB, an earlier site \(-o sites=block\.2\) about \d+ MiB, "
        r"a prompt of half as many tokens about \d+ MiB\.",
        said,
    ), said
    assert 22 < int(re.findall(r"about (\d+) MiB up to", said)[0]) < 50
    assert (folder / "report.html").is_file()
    assert (folder / "analyses/gradient-inverter/traceback.txt").is_file()


def test_weights_that_do_not_fit_end_in_a_sentence_of_what_they_take(
    limited: Callable[..., Any], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_gpt2(n_embd=512, n_layer=6, n_head=4)
    arguments = ["run", "--model", model, "--dtype", "float64", "--prompt", "a", "--output", tmp_path / "run"]
    ended = limited(24 * MEBIBYTE, *arguments)
    assert ended.code == 4, ended.err
    assert re.fullmatch(
        rf"Out of memory while loading '{re.escape(str(model))}': its weights take about 146 MiB; --dtype "
        r"bfloat16 takes 36 MiB, --quantization int8 takes \d+ MiB, --quantization nf4 takes \d+ MiB, "
        r"--device-map auto spreads them over devices, CPU and disk, --depth loads the first blocks only\.",
        ended.sentence,
    ), ended.sentence
    assert not (tmp_path / "run").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


# --- what is named ---------------------------------------------------------------------------------------------------


class Sited(probekit.Options):
    sites: probekit.Sites = "block.-1"


def said_of(subject: probekit.Subject, options: probekit.Options, tokens: int = 8, gradient: bool = True) -> str:
    """The sentence for memory that runs out while something of a gradient, or not, is computed."""
    prompt = probekit.Prompt("", subject.check_ids([1 + number for number in range(tokens)]), [""] * tokens)
    try:
        values = torch.ones(2, requires_grad=gradient)
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 2.00 GiB for {len(values)} values.")
    except torch.OutOfMemoryError as error:
        return sentence(error, subject, [prompt], options)


def test_only_what_helps_this_model_is_named(tiny_gpt2: Callable[..., Path]) -> None:
    folder = str(tiny_gpt2())
    mapped = said_of(probekit.load(folder), Sited())
    assert "another 2.00 GiB could not be had" in mapped
    assert "--quantization" not in mapped
    half = said_of(probekit.load(folder, dtype="bfloat16"), Sited())
    assert "--dtype" not in half
    assert re.search(r"; --quantization int8 saves about \d+ KiB of the weights, --quantization nf4 about", half)
    quantised = said_of(probekit.load(folder, quantization="int8"), Sited())
    assert "--dtype" not in quantised
    assert "--quantization" not in quantised
    assert "-o sites=block.1" in quantised
    for text in (mapped, half, quantised):
        assert "--device-map" not in text  # all of it is on the CPU
        assert text.count(". ") == 0


def test_the_first_block_one_token_and_values_without_gradient_have_less_to_save(
    tiny_gpt2: Callable[..., Path],
) -> None:
    subject = probekit.load(tiny_gpt2())
    first = said_of(subject, Sited(sites="block.0"))
    assert "gradient of one row of 8 tokens" in first
    assert "earlier site" not in first
    assert "half as many" not in said_of(subject, Sited(), tokens=1)
    assert "gradient" not in said_of(subject, Sited(), gradient=False)
    assert "gradient" not in said_of(subject, probekit.Options())


def test_an_estimate_that_fails_leaves_the_sentence_without_figures(
    tiny_gpt2: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = probekit.load(tiny_gpt2())
    monkeypatch.setattr(subject, "layer_map", None)
    assert said_of(subject, Sited()).startswith("Out of memory. Fewer restarts")
