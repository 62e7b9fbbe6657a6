"""Prompts of every kind: as texts, in files of text and JSON, as token ids; through a tokenizer and a whole capture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import probekit
from probekit.models.tokens import encode_text, token_strings
from probekit.plugins import Plugins
from probekit.runs.config import resolve
from probekit.runs.prompts import encode_prompts, read_prompts
from tests.fuzz.harness import Target, answer, few, limited_in_time, many, only_in
from tests.fuzz.places import scratch
from tests.fuzz.values import ODD_TEXTS, byte_changes, characters, json_text, json_values, texts, with_byte_changes


class Made:
    """Subjects to ask; filled in by the fixture. The second has the real tokenizer of GPT-2 where it is there."""

    subjects: list[probekit.Subject]
    plugins: Plugins


@pytest.fixture(scope="module", autouse=True)
def _made(tiny_gpt2: Callable[..., Path]) -> Iterator[None]:
    Made.plugins = Plugins()
    Made.subjects = [probekit.load(tiny_gpt2()), probekit.load("demo")]
    yield
    del Made.subjects, Made.plugins


storms = st.tuples(st.text(characters, max_size=3), st.integers(1, 60)).map(lambda drawn: drawn[0] * drawn[1])
anything = st.text(characters, max_size=24) | storms | texts


def check_text(text: Any) -> None:
    """A prompt as it is given: refused, or encoded, captured and said again without a surrogate."""
    values = {"prompts": [text], "plugins": ["activation-statistics"]}
    resolved = answer(lambda: resolve([("python", values)], Made.plugins))
    if resolved is not None:
        resolved.config.to_toml().encode()
    for subject in Made.subjects:
        ids = answer(lambda subject=subject: subject.encode(text))
        if resolved is None or ids is None:
            continue
        prompts = answer(lambda subject=subject: encode_prompts(subject, resolved.config))
        assert prompts is not None
        assert len(prompts[0].tokens) == ids.shape[1]
        "".join(prompts[0].tokens).encode()
        subject.text(ids).encode()
        captured = subject.capture(ids, ["block.0"])["block.0"]
        assert captured.isfinite().all()
        assert captured.shape[:2] == ids.shape


def check_ids(ids: Any) -> None:
    """Token ids, and what is none."""
    resolved = answer(lambda: resolve([("python", {"input_ids": [ids], "plugins": ["pseudo-inverse"]})], Made.plugins))
    if resolved is not None:
        for subject in Made.subjects:
            answer(lambda subject=subject: encode_prompts(subject, resolved.config))


def check_file(given: tuple[str, bytes]) -> None:
    """What a file holds is read, or refused; what is read is refused or resolved and written down."""
    ending, content = given
    with scratch() as own, only_in(own):
        (own / f"prompts{ending}").write_bytes(content)
        found = answer(lambda: read_prompts(own / f"prompts{ending}"))
    if found is None:
        return
    resolved = answer(lambda: resolve([("command line", {**found, "plugins": ["pseudo-inverse"]})], Made.plugins))
    if resolved is not None:
        resolved.config.to_toml().encode()
        json.dumps(resolved.document(), allow_nan=False)
        answer(lambda: encode_prompts(Made.subjects[0], resolved.config))


SHAPES = [
    lambda value: value,
    lambda value: {"prompt": value},
    lambda value: {"text": value, "input_ids": [1]},
    lambda value: {"input_ids": value},
    lambda value: {"input_ids": [1, value]},
    lambda value: [1, value],
    lambda value: [value],
]
some_lines = st.lists(
    st.tuples(st.sampled_from(SHAPES), json_values | st.lists(st.integers(-2, 70), max_size=4)).map(
        lambda drawn: json_text(drawn[0](drawn[1]))
    )
    | st.text(characters, max_size=8),
    max_size=4,
)
files = st.tuples(
    st.sampled_from([".jsonl", ".txt", ".json"]),
    st.tuples(some_lines.map(lambda lines: "\n".join(lines).encode(errors="surrogatepass")), byte_changes).map(
        lambda drawn: with_byte_changes(*drawn)
    )
    | some_lines.map(lambda lines: "\n".join(lines).encode(errors="surrogatepass")),
)

TARGETS = [
    Target("prompts", anything, check_text, few=30, many=6000),
    Target("token ids", st.lists(st.integers() | json_values, max_size=5) | json_values, check_ids, few=80, many=4000),
    Target("files of prompts", files, check_file, few=80, many=6000),
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_a_prompt_is_taken_or_refused_with_a_sentence(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


@pytest.mark.parametrize(
    "text", [*ODD_TEXTS, "x" * 1_000_000, "\u0301" * 100_000, "\ud83d", "a\ud83d\ude00", 7, None, b"x"]
)
def test_odd_prompts(text: Any) -> None:
    with limited_in_time():
        check_text(text)


@pytest.mark.data
def test_odd_prompts_in_the_tokenizer_of_gpt2(data_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data_folder / "tokenizers" / "gpt2")
    subject = probekit.Subject(Made.subjects[0].model, tokenizer)
    for text in ODD_TEXTS:
        answer(lambda text=text: subject.encode(text))
        ids = answer(lambda text=text: encode_text(tokenizer, text, True))
        if ids:
            "".join(token_strings(tokenizer, ids)).encode()


STRANGE_LINES = [
    b"[" * 100_000,
    b"9" * 5000,
    b'{"input_ids": [' + b"9" * 4000 + b"]}",
    b'{"input_ids": [1e999]}',
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'{"prompt": "\\udfff"}',
    b'"a\\u0000b"',
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf\xef\xbb\xbf",
    b"\0",
    b'"\xe2\x80\xa8"',
    b"\xe2\x80\xa8",
    b'{"prompt": {"prompt": "x"}}',
    b"NaN",
    b"{}",
    b"[]",
    b"[[1]]",
    b"[true]",
    b'""',
    b'" "',
]


@pytest.mark.parametrize("ending", [".jsonl", ".txt"])
@pytest.mark.parametrize("line", STRANGE_LINES, ids=range(len(STRANGE_LINES)))
def test_strange_lines(line: bytes, ending: str) -> None:
    with limited_in_time():
        check_file((ending, line))
        check_file((ending, b"a\n" + line + b"\r\n"))
