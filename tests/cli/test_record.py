"""`probekit record` and `probekit.record`: every option, prompts of every kind, and what is refused."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import probekit
from probekit.cli.record import Size
from probekit.errors import ModelError, UsageError

TEXTS = ["The sky is blue.", "Once upon a time", "a"]


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture(scope="module")
def subject(model: Path) -> probekit.Subject:
    return probekit.load(model)


def prompts_of(folder: Path) -> list[list[int]]:
    """The token ids of every prompt of a recording, by plain safetensors."""
    found: dict[int, list[int]] = {}
    for shard in sorted(folder.glob("shard-*")):
        tensors = load_file(shard)
        for prompt, token in zip(tensors["index/prompts"].tolist(), tensors["index/input_ids"].tolist(), strict=True):
            found.setdefault(prompt, []).append(token)
    return [found[number] for number in range(len(found))]


def encoded(subject: probekit.Subject, *texts: str) -> list[list[int]]:
    return [subject.encode(text)[0].tolist() for text in texts]


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_json_is_one_document_that_says_what_is_there(
    probekit_cli: Any, model: Path, subject: probekit.Subject, tmp_path: Path
) -> None:
    words = [word for text in TEXTS for word in ("--prompt", text)]
    ended = probekit_cli("record", "--model", model, *words, "--output", tmp_path / "r", "--json")
    assert ended.code == 0, ended.err
    recording = probekit.Recording(tmp_path / "r")
    assert json.loads(ended.out) == {
        "recording": str(tmp_path / "r"),
        "sites": ["block.0", "block.1", "block.2"],
        "prompts": 3,
        "tokens": sum(map(len, encoded(subject, *TEXTS))),
        "shards": 1,
        "bytes": recording.bytes,
    }
    assert prompts_of(tmp_path / "r") == encoded(subject, *TEXTS)
    assert "tokens: " in ended.err, "progress is shown, and not on standard output"


def test_without_json_a_line_says_how_much_and_another_where(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    words = ["record", "--model", model, "--prompt", "a", "--sites", "norm", "--output", tmp_path / "r"]
    for _ in range(2):
        ended = probekit_cli(*words)
        assert ended.code == 0, ended.err
        first, second = ended.out.splitlines()
        assert first.startswith("1 prompts, 1 tokens at 1 site, ")
        assert first.endswith("in 1 shard")
        assert second == f"Recording: {tmp_path / 'r'}"


def test_every_option_decides_what_it_says(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(TEXTS * 10), encoding="utf-8")
    options = ["--sites", "block.-1,norm", "--store", "bfloat16", "--batch-tokens", "20", "--shard-size", "6KiB"]
    others = ["--no-special-tokens", "--block-plugin", "pseudo-inverse", "--dtype", "float64"]
    ended = probekit_cli("record", "--model", model, "--prompts", file, *options, *others, "--output", tmp_path / "r")
    assert ended.code == 0, ended.err
    recording = probekit.Recording(tmp_path / "r")
    assert recording.sites == ["block.2", "norm"]
    assert recording.dtype("norm") == torch.bfloat16
    assert recording.manifest["storage"] == {"dtype": "bfloat16", "shard_bytes": 6 * 1024, "batch_tokens": 20}
    assert recording.manifest["model"]["dtype"] == "float64"
    assert recording.manifest["origin"]["model"] == {"name": str(model), "dtype": "float64"}
    assert recording.manifest["origin"]["special_tokens"] is False
    assert recording.prompt_count == 30
    assert len(recording.shards) > 3
    for batch in recording.batches([]):
        assert batch.mask.numel() <= 20


def test_the_model_is_the_embedded_one_unless_said(probekit_cli: Any, tmp_path: Path) -> None:
    ended = probekit_cli("record", "--input-ids", "1,2,3", "--sites", "block.0", "--output", tmp_path / "r")
    assert ended.code == 0, ended.err
    assert probekit.Recording(tmp_path / "r").manifest["origin"]["model"] == {"name": "demo"}
    assert prompts_of(tmp_path / "r") == [[1, 2, 3]]


def test_texts_come_before_token_ids(probekit_cli: Any, model: Path, subject: probekit.Subject, tmp_path: Path) -> None:
    words = ["--input-ids", "5,6", "--prompt", "a", "--input-ids", "[7, 8]", "--prompt", "The"]
    assert probekit_cli("record", "--model", model, *words, "--output", tmp_path / "r").code == 0
    assert prompts_of(tmp_path / "r") == [*encoded(subject, "a", "The"), [5, 6], [7, 8]]


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "prompts twice": (["--prompts", "x.txt", "--prompt", "a"], 2, "not from both"),
    "a file and ids": (["--prompts", "x.txt", "--input-ids", "1"], 2, "not from both"),
    "no prompts": ([], 2, "There are no prompts to record"),
    "a file that is not there": (["--prompts", "nowhere.txt"], 2, "'nowhere.txt' cannot be read: No such file"),
    "a folder of prompts": (["--prompts", "."], 2, "'.' cannot be read: Is a directory"),
    "an empty prompt": (["--prompt", ""], 2, "A prompt is empty"),
    "ids that are none": (["--input-ids", "1,x"], 2, "'--input-ids 1,x' is no list of token ids"),
    "no ids": (["--input-ids", ""], 2, "has no tokens"),
    "ids beyond the vocabulary": (["--input-ids", "1,99999"], 2, "99999 is outside the vocabulary"),
    "a site that is not there": (["--prompt", "a", "--sites", "block.9"], 2, "block.0 to block.2"),
    "a word for a site": (["--prompt", "a", "--sites", "blok"], 2, "There is no site 'blok'"),
    "no site": (["--prompt", "a", "--sites", ""], 2, "There is no site ''"),
    "a precision that is none": (["--prompt", "a", "--store", "int4"], 2, "'bfloat16'"),
    "no tokens at once": (["--prompt", "a", "--batch-tokens", "0"], 2, "--batch-tokens"),
    "a size that is none": (["--prompt", "a", "--shard-size", "much"], 2, "'much' is no size; expected for"),
    "a model that is not there": (["--prompt", "a", "--model", "./nowhere"], 4, "There is no folder './nowhere'"),
    "a depth that is not there": (["--prompt", "a", "--depth", "99"], 2, "99"),
    "an unknown option": (["--prompt", "a", "--nonsense"], 2, "--nonsense"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_one_sentence_and_leaves_nothing(
    probekit_cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options, code, part = REFUSED[kind]
    named = [] if "--model" in options else ["--model", model]
    ended = probekit_cli("record", *named, *options, "--output", "parent/r", "--json")
    assert ended.code == code, ended.err
    assert part in ended.sentence
    assert ended.out == ""
    assert not (tmp_path / "parent").exists()


def test_a_recording_is_not_made_without_a_place(probekit_cli: Any) -> None:
    ended = probekit_cli("record", "--prompt", "a")
    assert ended.code == 2
    assert "--output" in ended.sentence


def test_another_command_into_the_same_folder_is_refused(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    words = ["record", "--model", model, "--prompt", "a", "--output", tmp_path / "r"]
    assert probekit_cli(*words).code == 0
    for others, part in (
        (["--sites", "norm"], "another sites"),
        (["--prompt", "b"], "another prompts.count: 1 then, 2 now"),
        (["--store", "float16"], "another storage.dtype"),
        (["--dtype", "float64"], "another model.dtype"),
        (["--no-special-tokens"], "another origin.special_tokens: True then, False now"),
    ):
        ended = probekit_cli(*words, *others)
        assert ended.code == 2
        assert part in ended.sentence
    assert probekit_cli(*words).code == 0


def test_a_weight_that_is_not_finite_is_named_and_the_code_is_that_of_a_failure(
    probekit_cli: Any, model: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import save_file

    copy = Path(shutil.copytree(model, tmp_path / "model"))
    weights = load_file(copy / "model.safetensors")
    weights["transformer.h.1.ln_2.bias"][0] = float("inf")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    ended = probekit_cli("record", "--model", copy, "--prompt", "a", "--output", tmp_path / "r")
    assert ended.code == 1
    assert "the weight transformer.h.1.ln_2.bias holds NaN or infinity" in ended.sentence
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "index.jsonl",
        "recording.json",
        "vocabulary.json",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("64MiB", 64 * 2**20), ("1GB", 10**9), ("4096", 4096), ("1.5KiB", 1536), ("2 KiB", 2048), ("10kb", 1250)],
)
def test_sizes_are_read_as_they_are_written(text: str, expected: int) -> None:
    assert Size().convert(text, None, None) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "-5MiB", "0MiB", "MiB", "infGB", "nanGB", "1e400MiB", "5 apples", "1.5", "²", "9" * 5000]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size"):
        Size().convert(text, None, None)


# --- files of prompts ------------------------------------------------------------------------------------------------


def test_a_text_file_with_a_mark_in_front_and_mixed_line_ends(
    model: Path, subject: probekit.Subject, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffThe sky\r\nis blue.\n\r\n   \n\u2028 a\x85b \r\nlast".encode())
    recording = probekit.record(model, file, "block.0", tmp_path / "r")
    expected = encoded(subject, "The sky", "is blue.", "\u2028 a\x85b ", "last")
    assert prompts_of(tmp_path / "r") == expected
    assert recording.prompt_count == 4


def test_a_jsonl_file_with_prompts_of_every_shape(model: Path, subject: probekit.Subject, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = ['"The sky"', '{"prompt": "is\\nblue."}', '{"text": "a", "other": 5}', '{"input_ids": [5, 6]}', "[7]", ""]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    probekit.record(str(model), str(file), ["block.0", "norm"], str(tmp_path / "r"))
    assert prompts_of(tmp_path / "r") == [*encoded(subject, "The sky", "is\nblue.", "a"), [5, 6], [7]]


BAD_LINES = [
    '{"prompt": [5]}',
    "{",
    "5",
    "[]",
    '["a"]',
    "[1.5]",
    "[true]",
    '{"input_ids": "5"}',
    '{"other": "x"}',
    "null",
    "[" * 100_000,
]


@pytest.mark.parametrize("line", [*BAD_LINES, '""', '"\\ud800"', "[99999]"], ids=lambda line: line[:20])
def test_a_bad_line_at_the_end_of_a_long_file_ends_before_anything_is_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"The sky"\n' * 2000 + line + "\n", encoding="utf-8")
    captured: list[int] = []
    monkeypatch.setattr(probekit.Subject, "capture", lambda *_: captured.append(1))
    with pytest.raises(UsageError) as refused:
        probekit.record(model, file, "block.0", tmp_path / "deep" / "r")
    assert "Line 2001 of" in str(refused.value) or line not in BAD_LINES
    assert captured == []
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("content", "part"), [(b"", "has no prompts"), (b"\r\n \n", "has no prompts"), (b"a\n\xff\n", "is not UTF-8 text")]
)
def test_a_file_without_prompts_is_refused(model: Path, tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UsageError, match=part):
        probekit.record(model, tmp_path / "prompts.txt", "block.0", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_pipe_cannot_be_read_twice_and_the_sentence_says_so(model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []

    def call() -> None:
        with pytest.raises(UsageError) as refused:
            probekit.record(model, pipe, "block.0", tmp_path / "r")
        found.append(str(refused.value))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert found == [f"The prompts '{pipe}' are a pipe, and prompts are read more than once; write them to a file."]


def test_a_path_that_no_file_could_have_is_a_sentence(model: Path, tmp_path: Path) -> None:
    for path in ("a\0b", "a" * 5000):
        with pytest.raises(UsageError, match="cannot be read"):
            probekit.record(model, path, "block.0", tmp_path / "r")


# --- from Python -----------------------------------------------------------------------------------------------------


def test_prompts_are_taken_as_python_has_them(model: Path, subject: probekit.Subject, tmp_path: Path) -> None:
    given: Any = (text for text in TEXTS)
    ids: Any = [[1, 2], (3, 4), torch.tensor([5, 6]), np.array([7, 8])]
    recording = probekit.record({"name": str(model)}, given, "block.0", tmp_path / "r", input_ids=ids)
    expected = [*encoded(subject, *TEXTS), [1, 2], [3, 4], [5, 6], [7, 8]]
    assert prompts_of(tmp_path / "r") == expected
    assert isinstance(recording, probekit.Recording)
    assert recording.complete
    again = probekit.record(model, TEXTS, "block.0", tmp_path / "r", input_ids=[[1, 2], [3, 4], [5, 6], [7, 8]])
    assert again.tokens == recording.tokens


@pytest.mark.parametrize(
    "given",
    [{"prompts": [5]}, {"prompts": [b"abc"]}, {"prompts": [None]}, {"input_ids": [1, 2]}, {"input_ids": [[1.0]]},
     {"input_ids": [["a"]]}, {"input_ids": [[True]]}, {"input_ids": [[[1]]]}, {"input_ids": [torch.tensor([[1, 2]])]}],
    ids=str,
)  # fmt: skip
def test_what_is_no_prompt_is_a_sentence(model: Path, tmp_path: Path, given: Any) -> None:
    with pytest.raises(UsageError, match="is no prompt; expected a text, or a list of token ids"):
        probekit.record(model, output=tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"store": "float64"}, "cannot be stored as 'float64'; expected one of: auto, float32, bfloat16, float16"),
        ({"batch_tokens": 0}, "batch_tokens is 0; expected at least 1"),
        ({"shard_bytes": -1}, "shard_bytes is -1; expected at least 1"),
        ({"prompts": []}, "There are no prompts to record"),
        ({"model": {"name": "demo", "dtyp": "float32"}}, "no option 'dtyp'"),
        ({"sites": []}, "There is no site ''"),
    ],
)
def test_a_wrong_request_is_a_sentence(model: Path, tmp_path: Path, given: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError) as refused:
        probekit.record(**{"model": model, "prompts": ["a"], "output": tmp_path / "r", **given})
    assert part in str(refused.value)
    assert not (tmp_path / "r").exists()


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no folder"):
        probekit.record(tmp_path / "nowhere", ["a"], output=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_progress_counts_tokens_up_to_all_of_them(model: Path, tmp_path: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, int]] = []

        def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
            self.seen.append((label, done, total))

        def message(self, text: str) -> None:
            pass

    listener = Listener()
    recording = probekit.record(model, TEXTS, "block.0", tmp_path / "r", shard_bytes=1, listener=listener)
    assert listener.seen[-1] == ("tokens", recording.tokens, recording.tokens)
