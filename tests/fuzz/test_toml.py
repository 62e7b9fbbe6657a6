"""Configurations and studies in TOML."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import strategies as st

from probekit.plugins import Plugins
from probekit.runs.config import RunConfig, read_config, resolve
from probekit.runs.studies.cells import expand
from probekit.runs.studies.file import read_study
from probekit.runs.studies.judge import check_study, judge
from probekit.runs.studies.rules import FUNCTIONS, evaluate, filled
from tests.fuzz.harness import Target, answer, few, limited_in_time, many, only_in
from tests.fuzz.places import scratch
from tests.fuzz.values import ODD_TEXTS, byte_changes, characters, texts, toml_values, with_byte_changes, with_changes

ROOT = Path(__file__).resolve().parents[2]
FILES = [path.read_bytes() for path in sorted((ROOT / "reports" / "studies").glob("*.toml"))]

CONFIGURATION: dict[str, Any] = {
    "model": {"name": "demo", "dtype": "float32", "weights": "random", "weights_seed": 3, "depth": 2, "device": "cpu"},
    "plugins": ["clamped-walk", "repetition"],
    "options": {"clamped-walk": {"steps": 5, "sites": ["block.0", "norm"], "learning_rate": 0.1}, "repetition": {}},
    "prompts": ["a", "b"],
    "input_ids": [[1, 2], [3]],
    "special_tokens": False,
    "seed": 7,
    "block_plugins": ["x"],
}
STUDY: dict[str, Any] = {
    "title": "t",
    "parameters": {"model": "demo", "steps": 3, "far": "$model"},
    "runs": {
        "near": {
            "model": "$model",
            "plugins": ["clamped-walk"],
            "options": {"sites": "block.$block", "steps": "$steps"},
            "prompts": ["a"],
            "seeds": 2,
            "sweep": {"block": [0, 1]},
        },
        "other": {"plugins": "clamped-walk", "model": {"name": "demo", "weights": "random"}, "seeds": [4]},
    },
    "expectations": [
        {
            "id": "e",
            "claim": "c",
            "each": "block",
            "figures": {
                "near": {"run": "near", "metric": "m/$block", "missing": 0},
                "far": {"run": "near", "where": {"seed": 0}, "table": "t", "column": "c", "rows": {"r": 1}},
            },
            "verdicts": {"holds": "median(near) > 0.5", "fails": "share(near < 0.1) >= 0.5"},
            "expect": ["holds"],
            "because": "It is {median(near):.3g} of {count(far)}.",
            "follows": {"holds": "So {most(near):.0%}."},
        },
        {"id": "f", "claim": "d", "untested": "No."},
    ],
    "charts": [
        {"caption": "k", "beside": "e", "figure": {"run": "near", "metric": "m"}, "x": "block", "series": "seed"}
    ],
}


@cache
def plugins() -> Plugins:
    return Plugins()


def toml_changes() -> st.SearchStrategy[list[tuple[int, str, Any]]]:
    kinds = st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add", "nest", "text", "number"])
    return st.lists(st.tuples(st.integers(0, 10_000), kinds, toml_values), min_size=1, max_size=3)


def written(document: Any) -> bytes | None:
    """As TOML, if TOML can say it."""
    try:
        return tomli_w.dumps(document).encode()
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None


def check_configuration(content: bytes | None) -> None:
    if content is None:
        return
    with scratch() as folder, only_in(folder):
        (folder / "config.toml").write_bytes(content)
        values = answer(lambda: read_config(folder / "config.toml"))
        if values is None or "activations" in values:
            return
        resolved = answer(lambda: resolve([("config.toml", values)], plugins()))
        if resolved is None:
            return
        (folder / "again.toml").write_bytes(resolved.config.to_toml().encode())
        again = resolve([("again.toml", read_config(folder / "again.toml"))], plugins())
        assert again.options == resolved.options
        assert again.config == resolved.config or resolved.config.model_dump(mode="json") == again.config.model_dump(
            mode="json"
        )
        json.dumps(resolved.document(), allow_nan=False)


def check_study_file(content: bytes | None) -> None:
    if content is None:
        return
    with scratch() as folder, only_in(folder):
        (folder / "study.toml").write_bytes(content)
        study = answer(lambda: read_study(folder / "study.toml", {}))
        if study is None:
            return
        cells = answer(lambda: expand(study, plugins()))
        if cells is None:
            return
        answer(lambda: check_study(study, cells))
        for expectation in study.expectations:
            answer(lambda expectation=expectation: judge(expectation, cells, {}, study.parameters))


RULE_PIECES = [
    *("near", "far", "0", "1", "2", "1e308", "0.5", "-1", "9" * 400, "True", "(", ")", "[", "]", ",", ":", "'a'", "x"),
    *("+", "-", "*", "/", "**", "%", "//", ">", "<", ">=", "==", "!=", "&", "|", "~", "^", "<<", "@", ".", "not"),
    *(
        "and",
        "or",
        "if",
        "else",
        "in",
        "is",
        "lambda:",
        "for",
        "await",
        "__class__",
        "{",
        "}",
        "!r",
        ":.3g",
        ":.99f",
        " ",
    ),
    *(f"{name}(" for name in FUNCTIONS),
]


def rule_texts() -> st.SearchStrategy[str]:
    pieces = st.lists(st.sampled_from(RULE_PIECES) | st.text(characters, max_size=2), max_size=9)
    return (
        pieces.map(" ".join) | pieces.map("".join) | st.sampled_from(["(" * 150, "-" * 1500 + "1", "1" + "**9" * 300])
    )


def check_rule(rule: str) -> None:
    figures = {"near": [0.25, 0.5, 0.75], "far": [1.0]}
    answer(lambda: evaluate(rule, figures, "The rule"))
    answer(lambda: filled(rule, figures, "the sentence"))
    answer(lambda: filled("{" + rule + "}", figures, "the sentence"))


torn = st.tuples(st.sampled_from(FILES), byte_changes).map(lambda drawn: with_byte_changes(*drawn))
lines = st.lists(
    st.sampled_from(["[a", "]", "[[runs", "runs", ".", "=", '"', "'", "\n", "{", "}", "1", "x", "[options]", "seed=1"])
    | texts,
    max_size=12,
).map(lambda parts: "".join(parts).encode(errors="surrogatepass"))

configurations = toml_changes().map(lambda way: written(with_changes(CONFIGURATION, way)))
studies = toml_changes().map(lambda way: written(with_changes(STUDY, way)))

TARGETS = [
    Target("configurations", configurations, check_configuration, 100, 9000),
    Target("texts as configurations", torn | lines, check_configuration, 60, 3000),
    Target("studies", studies, check_study_file, 100, 7000),
    Target("texts as studies", torn | lines, check_study_file, 40, 2000),
    Target("rules", rule_texts(), check_rule, 150, 8000),
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_what_is_written_is_taken_or_refused_with_a_sentence(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


STRANGE_FILES = [
    b"",
    b"\xef\xbb\xbfseed = 1",
    b"seed = 1\x00",
    b"seed = 1\nseed = 2",
    b"[model]\n[model]",
    b"seed = " + b"9" * 5000,
    b"seed = 0x" + b"f" * 5000,
    b"options = {steps = 0x" + b"f" * 5000 + b"}",
    b"options.steps = 0x" + b"f" * 5000,
    b"title = " + b"[" * 100_000,
    b"title = " + b"[" * 400 + b"]" * 400,
    b"options.steps = " + b"[" * 200 + b"]" * 200,
    b"options." + b"a." * 20_000 + b"b = 1",
    b"options." + b"a." * 300 + b"b = 1",
    b"a = {" + b"a = {" * 100_000,
    b"prompts = ['\xed\xa0\x80']",
    b'prompts = ["\\ud800"]',
    b"prompts = ['" + b"x" * 2_000_000 + b"']",
    b"prompts = [" + b"'x'," * 200_000 + b"]",
    b"\xff\xfes\x00e\x00",
    b"title = 't'\n[runs.a]\nplugins = 'clamped-walk'\nseeds = 1000000000000",
    b"title = 't'\n[runs.a]\nplugins = 'clamped-walk'\nseeds = 1\n[runs.a.sweep]\n"
    + b"\n".join(b"v%d = [1,2,3,4,5,6,7,8,9,10]" % number for number in range(12)),
    b"title = 't'\n[parameters]\na = '" + b"x" * 1000 + b"'\nb = '$a$a$a$a'\n"
    + b"\n".join(b"c%d = '$b'" % number for number in range(100)),
]  # fmt: skip


@pytest.mark.parametrize("content", STRANGE_FILES, ids=range(len(STRANGE_FILES)))
def test_strange_files(content: bytes) -> None:
    with limited_in_time():
        check_configuration(content)
        check_study_file(content)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_as_rules_and_sentences(text: str) -> None:
    check_rule(text)


def test_the_made_up_documents_are_whole() -> None:
    """Near what is expected: unchanged they are taken."""
    with scratch() as folder:
        (folder / "a.toml").write_bytes(written(CONFIGURATION) or b"")
        (folder / "b.toml").write_bytes(written(STUDY) or b"")
        resolved = resolve([("a", read_config(folder / "a.toml"))], plugins())
        assert isinstance(resolved.config, RunConfig)
        study = read_study(folder / "b.toml", {})
        cells = expand(study, plugins())
        check_study(study, cells)
        assert [judgement.verdict for judgement in judge(study.expectations[0], cells, {}, study.parameters)] == [
            "incomplete"
        ] * 2
        assert len(list(islice(cells, 9))) == 5
