"""Site expressions, on a model and on a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

import probekit
from probekit.activations import Recording
from probekit.errors import UsageError
from probekit.forward import expand_expression
from tests.activations.recordings import made_up, record_ids
from tests.fuzz.harness import Target, answer, few, limited_in_time, many
from tests.fuzz.values import ODD_TEXTS, characters, texts

PIECES = [
    *("block", "blocks", "every-block", "embedding", "norm", "logits", "transformer", "h", "transformer.h.0.mlp"),
    *("block.0", "block.-1", "block.2", "block.3", "block.", "block.0:2", "block.::", "block.-3:-1", "block.::-1"),
    *(".", ":", ",", "-", "+", " ", "0", "1", "٣", "²", "00", "1e3", "9" * 30, "9" * 5000, ":0", "::0", "\n", "*", "["),
]  # fmt: skip


def expressions() -> st.SearchStrategy[str]:
    pieces = st.lists(st.sampled_from(PIECES) | st.text(characters, max_size=2), max_size=8)
    return pieces.map("".join) | pieces.map(",".join) | texts


class Read:
    """What the site expressions are asked of; filled in by the fixture, since it takes a model."""

    subject: probekit.Subject
    recording: Recording


@pytest.fixture(scope="module", autouse=True)
def _read(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Read.subject = probekit.load(tiny_gpt2())
    folder = tmp_path_factory.mktemp("sites") / "recording"
    Read.recording = record_ids(Read.subject, folder, made_up(3), sites="block.0,block.2,norm")
    yield
    del Read.subject, Read.recording


def check(expression: str) -> None:
    """Each name that it stands for is a site, once; and what it stands for stands for itself."""
    for source in (Read.subject, Read.recording):
        names = answer(lambda source=source: source.expand_sites(expression))
        if names is not None:
            assert len(set(names)) == len(names) > 0
            assert source.expand_sites(",".join(names)) == names
    every = [f"block.{number}" for number in range(5)]

    def one(name: str) -> str:
        if name in every:
            return name
        raise UsageError(f"There is no site {name!r}.")

    answer(lambda: expand_expression(expression, range(5), 5, one))


TARGETS = [Target("sites", expressions(), check, few=200, many=12_000)]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_an_expression_stands_for_sites_or_is_refused_with_a_sentence(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


@pytest.mark.parametrize(
    "expression",
    [
        *ODD_TEXTS,
        *PIECES,
        "block." + "9" * 5000,
        "block.-" + "9" * 5000,
        "block.0:" + "9" * 5000,
        "block.::" + "9" * 5000,
        "block.::-" + "9" * 5000,
        "block.٣",
        "block.²",
        "block.0," * 20_000,
        "block.0:3," * 20_000,
        "," * 100_000,
        "transformer" + ".h" * 20_000,
        "transformer.h\n",
        "block.0\n",
    ],
)
def test_odd_expressions(expression: str) -> None:
    with limited_in_time():
        check(expression)


def test_a_recording_of_very_many_blocks_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recording says of its model is a number that anybody can write."""
    manifest: dict[str, Any] = {**Read.recording.manifest, "blocks": 10**9}
    forged = SimpleNamespace(manifest=manifest)
    monkeypatch.setattr(Read.recording, "manifest", forged.manifest)
    with limited_in_time():
        for expression in ("blocks", "block.::", "block.0:", "block.0:1000000000:7", "block.-1"):
            answer(lambda expression=expression: Read.recording.expand_sites(expression))
