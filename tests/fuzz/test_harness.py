"""The harness itself: it sees what it is there to see, and the slow tests are as many as they say."""

from __future__ import annotations

import importlib
import pickle
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from probekit.errors import AnalysisError, UsageError, one_line
from tests.fuzz.harness import (
    MOST_MEGABYTES,
    SEED_VARIABLE,
    Hung,
    Target,
    answer,
    few,
    forget_peak,
    limited_in_time,
    many,
    megabytes,
    only_in,
)
from tests.fuzz.places import scratch
from tests.fuzz.values import ODD_TEXTS

MODULES = ["folders", "options", "pages", "prompts", "recordings", "runs", "sites", "toml"]


def test_the_slow_tests_try_a_hundred_thousand_inputs() -> None:
    targets = [target for name in MODULES for target in importlib.import_module(f"tests.fuzz.test_{name}").TARGETS]
    assert len({target.name for target in targets}) == len(targets)
    assert sum(target.many for target in targets) >= 100_000
    there = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert there - {"harness"} == set(MODULES)


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("a"), RecursionError(), MemoryError()])
def test_an_exception_that_is_no_sentence_is_a_failure(error: Exception) -> None:
    def raises(_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        few(Target("raises", st.just(0), raises, few=1))


def test_a_sentence_is_an_answer_and_an_empty_one_is_none() -> None:
    def refuses(sentence: str) -> Callable[[], None]:
        def call() -> None:
            raise UsageError(sentence)

        return call

    assert answer(refuses("No.")) is None
    with pytest.raises(AssertionError):
        answer(refuses(" "))


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_an_error_is_one_line_of_visible_characters_whatever_it_names(text: str) -> None:
    sentence = str(AnalysisError(f"The file '{text}' is wrong."))
    assert sentence.isprintable()
    assert len(sentence) <= 2000
    assert sentence.startswith("The file '")
    assert sentence.endswith("' is wrong.")
    assert str(AnalysisError(sentence)) == sentence
    assert one_line(sentence) == sentence
    assert str(pickle.loads(pickle.dumps(AnalysisError(sentence)))) == sentence


def test_a_long_error_lacks_its_middle() -> None:
    sentence = str(UsageError(f"The start {'x' * 100_000} the end."))
    assert sentence.startswith("The start xx")
    assert sentence.endswith("xx the end.")
    assert 1990 < len(sentence) <= 2000


def test_a_hang_is_ended_and_nobody_takes_it_for_an_answer() -> None:
    def swallows() -> None:
        try:
            time.sleep(5)
        except BaseException:
            return

    for hangs in (lambda: time.sleep(5), swallows):
        with pytest.raises(Hung), limited_in_time(0.05):
            hangs()


def test_the_seed_of_a_failure_is_said_and_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def fails(number: int) -> None:
        found.append(number)
        assert number < 1000

    target = Target("numbers", st.integers(0, 10**6), fails, many=500)
    with pytest.raises(AssertionError) as first:
        many(target)
    seed = next(note for note in first.value.__notes__ if SEED_VARIABLE in note).split("=")[1].split()[0]
    monkeypatch.setenv(SEED_VARIABLE, seed)
    tried = list(found)
    found.clear()
    with pytest.raises(AssertionError):
        many(target)
    assert found == tried


def _connect(_: Path) -> None:
    with socket.socket() as tried:
        tried.settimeout(0.01)
        tried.connect_ex(("127.0.0.1", 9))


LEAVES: dict[str, Callable[[Path], object]] = {
    "writes outside": lambda own: (own.parent / "outside" / "x").write_text("x"),
    "reads beside": lambda own: (
        (own.parent / "outside" / "x").exists() or list(map(Path.read_text, [own.parent / "y"]))
    ),
    "reads through a link": lambda own: (own / "link").read_text(),
    "makes a folder": lambda own: (own.parent / "z").mkdir(),
    "moves a file out": lambda own: (own / "file").rename(own.parent / "outside" / "file"),
    "removes a file": lambda own: (own.parent / "y").unlink(),
    "starts a process": lambda _: subprocess.run(["true"], check=True),
    "connects": _connect,
    "loads a pickle": lambda _: pickle.loads(pickle.dumps(Path)),
}


@pytest.mark.parametrize("kind", LEAVES)
def test_whatever_leaves_its_folder_is_seen(kind: str) -> None:
    with scratch() as own:
        (own / "file").write_text("x")
        (own.parent / "y").write_text("x")
        (own / "link").symlink_to(own.parent / "y")
        with pytest.raises(AssertionError, match="it left its folder"), only_in(own):
            LEAVES[kind](own)
        with only_in(own):
            (own / "other").write_text("x")
            (own / "other").unlink()
            Path(__file__).read_text(encoding="utf-8")


def test_memory_that_an_input_does_not_warrant_is_a_failure() -> None:
    kept: list[bytearray] = []
    forget_peak()
    much = int(megabytes() + MOST_MEGABYTES + 100) << 20  # more than the peak, also where that cannot be forgotten
    with pytest.raises(AssertionError, match="more memory"):
        few(Target("takes much", st.just(0), lambda _: kept.append(bytearray(b"x") * much), few=1))
