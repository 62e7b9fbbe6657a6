"""The rules of a study: what they compute, and that they can do nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probekit.errors import UsageError
from probekit.runs.studies.rules import FUNCTIONS, check, evaluate, filled, verdict

FIGURES = {"near": [0.2, 0.5, 0.9], "far": [1.0, 2.0, 6.0], "one": [3.0], "zero": [0.0, 0.0]}


def value(expression: str) -> Any:
    return evaluate(expression, FIGURES, "The rule")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("median(far)", 2.0),
        ("mean(far)", 3.0),
        ("least(far)", 1.0),
        ("most(far)", 6.0),
        ("spread(far)", 7.0**0.5),  # the sample's standard deviation
        ("spread(one)", 0.0),
        ("quantile(far, 0.25)", 1.5),
        ("count(near)", 3),
        ("share(near > 0.4)", 2 / 3),
        ("share((near > 0.1) & (near < 0.4))", 1 / 3),
        ("share((near < 0.3) | (near > 0.8))", 2 / 3),
        ("share(~(near < 0.3))", 2 / 3),
        ("share(far > 3 * near)", 1.0),
        ("abs(least(near) - 1)", 0.8),
        ("mean(abs(near - far))", pytest.approx((0.8 + 1.5 + 5.1) / 3)),
        ("median(far) ** 2", 4.0),
        ("median(far ** 2)", 4.0),
        ("median(far * far / far)", 2.0),
        ("near[0] + far[-1]", pytest.approx(6.2)),
        ("count(near[near > 0.4])", 2),
        ("count(near) % 2", 1),
        ("0.1 < median(near) <= 0.5", True),
        ("median(near) > 0.4 and not median(far) > 9", True),
        ("1 if median(near) > 9 else 2", 2),
        ("min(3, count(near), 9.5)", 3.0),
        ("max(least(near), -1, 0.25)", 0.25),
    ],
)
def test_what_expressions_compute(expression: str, expected: Any) -> None:
    assert value(expression) == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_every_function_is_tested() -> None:
    [parameters] = [mark.args[1] for mark in test_what_expressions_compute.pytestmark if mark.name == "parametrize"]
    text = " ".join(expression for expression, _ in parameters)
    assert [name for name in FUNCTIONS if f"{name}(" not in text] == []


@pytest.mark.parametrize(
    "expression",
    [
        "near.tofile('stolen')",
        "near.dump('stolen')",
        "near.shape",
        "near.__class__",
        "median.__globals__",
        "().__class__.__bases__[0].__subclasses__()",
        "__import__('os').system('touch stolen')",
        "import os",
        "open('stolen', 'w')",
        "print(1)",
        "eval('1')",
        "getattr(near, 'tofile')",
        "(lambda: 1)()",
        "[value for value in near]",
        "(found := 1)",
        "near = 1",
        "median(near); 1",
        "'a' * 10 ** 9",
        "'%1000000000d' % 1",
        "f'{near}'",
        "median(values=near, **{})",
        "(median if 1 else mean)(near)",
        "FUNCTIONS['median']",
        "None",
        "1j",
        "...",
        "median",
        "await near",
        "near @ near",
        "1 << 99999999",
        "",
        "  ",
        "median(near",
        "x",
        "median(nothing)",
        "median()",
        "median(near, far)",
        "near > 0.5 and far > 0.5",
        "near + zero",
        "near[7]",
        "quantile(near, 2)",
        "1 / 0",
        "1 / least(zero)",
        "(" * 500 + "1" + ")" * 500,
        "-" * 1900 + "1",
        "1" + "+1" * 5000,
        "9" * 1999 + "**2",
        "near\0",
    ],
)
def test_anything_else_is_refused_with_a_sentence(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        value(expression)
    sentence = str(refused.value)
    assert sentence.startswith("The rule")
    assert len(sentence) < 1000
    assert "0x" not in sentence, "an address would differ from run to run"
    assert list(tmp_path.iterdir()) == []


def test_most_of_it_is_refused_before_there_are_figures() -> None:
    for expression in ("near.shape", "open(near)", "median(", "medain(near)"):
        with pytest.raises(UsageError):
            check(expression, FIGURES, "The rule")
    with pytest.raises(UsageError, match=r"no function 'medain'.*Did you mean 'median'\?"):
        check("medain(near)", FIGURES, "The rule")
    with pytest.raises(UsageError, match=r"no figure 'naer'.*figures near, far.*Did you mean 'near'\?"):
        check("median(naer)", FIGURES, "The rule")


def test_no_power_takes_forever() -> None:
    assert value("9 ** 9 ** 9") == float("inf")


def test_the_first_true_rule_is_the_verdict() -> None:
    rules = {"holds": "median(near) > 0.4", "fails": "median(near) > 0.1"}
    assert verdict(rules, FIGURES, "e") == "holds"
    assert verdict(dict(reversed(rules.items())), FIGURES, "e") == "fails"
    assert verdict({"holds": "median(near) > 9"}, FIGURES, "e") == "undecided"
    assert verdict({}, FIGURES, "e") == "undecided"


def test_nothing_is_true_of_what_is_no_number() -> None:
    """NaN, here the median of no value and zero by zero, makes no comparison true."""
    empty = "median(near[near > 9])"
    rules = {"one": f"{empty} > 0", "two": f"{empty} <= 0", "three": "mean(zero / zero) > 0"}
    assert verdict(rules, FIGURES, "e") == "undecided"


@pytest.mark.parametrize(
    ("rule", "kind"), [("median(near)", "float"), ("near > 0.4", "ndarray"), ("one > 0.4", "ndarray"), ("1", "int")]
)
def test_a_rule_that_gives_no_truth_value_is_refused(rule: str, kind: str) -> None:
    with pytest.raises(UsageError, match=f"'holds' of e.*gives {kind}, not true or false"):
        verdict({"holds": rule}, FIGURES, "e")


def test_sentences_are_filled_in() -> None:
    sentence = "{median(near):.0%} of {count(far)}, {mean(far):.3g}; {{as it is}} {median(near) > 0}"
    assert filled(sentence, FIGURES, "e") == "50% of 3, 3; {as it is} True"
    assert filled("", FIGURES, "e") == ""


@pytest.mark.parametrize(
    "sentence",
    [
        "{near:.3g}",
        "{near}",
        "{median(near):q}",
        "{median(near):1000000000f}",
        "{median(near):{count(near)}}",
        "{median(near)!r}",
        "{median(near)",
        "median}",
        "{}",
        "{near.shape}",
        "{near.__class__}",
        "{1/0}",
        "{count(near):.0q}",
    ],
)
def test_sentences_that_cannot_be_filled_in_are_refused(sentence: str) -> None:
    with pytest.raises(UsageError, match=r"[Tt]he sentence of e"):
        filled(sentence, FIGURES, "e")
