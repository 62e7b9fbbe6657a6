"""The rules of a study: expressions over figures that give a verdict, and sentences with expressions in them.

A study file may come from anyone, so an expression can reach nothing but its figures and these functions: no
attribute (an array could write itself to disk), no text (whose formats can fill the memory), no import.
"""

from __future__ import annotations

import ast
import operator
import re
import string
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy
from simpleeval import InvalidExpression, OperatorNotDefined, SimpleEval

from probekit.errors import UsageError, nearest

Values = Sequence[float]

FUNCTIONS: dict[str, Any] = {
    "median": lambda values: float(numpy.median(values)),
    "mean": lambda values: float(numpy.mean(values)),
    "least": lambda values: float(numpy.min(values)),
    "most": lambda values: float(numpy.max(values)),
    "spread": lambda values: float(numpy.std(values, ddof=1)) if len(values) > 1 else 0.0,
    "quantile": lambda values, share: float(numpy.quantile(values, share)),
    "count": lambda values: len(values),
    # The share of values for which a comparison holds: share(near > 0.9).
    "share": lambda held: float(numpy.mean(held)),
    "abs": abs,
    # Of several numbers: min(median(slow), median(fast)).
    "min": lambda *numbers: min(float(number) for number in numbers),
    "max": lambda *numbers: max(float(number) for number in numbers),
}
# In floating point, so that no power takes forever, and of arrays as of numbers.
OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, power: numpy.power(numpy.asarray(base, float), power),
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Invert: operator.invert,
}
PARTS = (
    *(ast.Expr, ast.Name, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call),
    *(ast.Subscript, ast.Slice, ast.Constant),
)
MOST_CHARACTERS = 2000


def evaluate(expression: str, figures: Mapping[str, Values], what: str) -> Any:
    """The value of an expression in which figures stand as arrays. Raises UsageError with one sentence."""
    tree = check(expression, figures, what)
    names = {name: numpy.asarray(each, float) for name, each in figures.items()}
    evaluator = SimpleEval(operators=OPERATORS, functions=FUNCTIONS, names=names)
    evaluator.nodes = {part: handler for part, handler in evaluator.nodes.items() if part in PARTS}
    try:
        with numpy.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the median of nothing is NaN, and no comparison holds for it
            value = evaluator.eval(expression, tree)
        return value.item() if isinstance(value, numpy.generic) else value
    except OperatorNotDefined as error:
        raise _fault(f"there is no operator {type(error.attr).__name__} here", expression, figures, what) from None
    except (InvalidExpression, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise _fault(str(error), expression, figures, what) from None


def check(expression: str, figures: Collection[str], what: str) -> ast.expr:
    """The parsed expression. Raises UsageError for one that uses anything but figures, numbers and functions."""
    if len(expression) > MOST_CHARACTERS:
        raise UsageError(f"{what} has {len(expression)} characters; an expression has {MOST_CHARACTERS} at most.")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise _fault(text, expression, figures, what) from None
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.expr) and not isinstance(node, PARTS):
            raise _fault(f"{type(node).__name__} is not allowed", expression, figures, what)
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool | int | float):
            raise _fault(f"{node.value!r} is no number", expression, figures, what)
        if isinstance(node, ast.Name):
            known = FUNCTIONS if id(node) in called else figures
            if node.id not in known:
                kind = "function" if id(node) in called else "figure"
                raise _fault(f"there is no {kind} '{node.id}'", expression, figures, what, nearest(node.id, known))
    return tree


def _fault(text: str, expression: str, figures: Collection[str], what: str, hint: str = "") -> UsageError:
    shown = expression if len(expression) <= 200 else f"{expression[:200]}…"
    return UsageError(
        f"{what}, `{shown}`, cannot be evaluated ({' '.join(text.split())}); it may use the figures "
        f"{', '.join(figures) or 'none'} and the functions {', '.join(FUNCTIONS)}.{hint}"
    )


def verdict(rules: Mapping[str, str], figures: Mapping[str, Values], what: str) -> str:
    """The first verdict whose rule is true, or `undecided`. Raises UsageError for a rule that gives no truth value."""
    for name, rule in rules.items():
        value = evaluate(rule, figures, f"The rule '{name}' of {what}")
        if not isinstance(value, bool):
            raise UsageError(
                f"The rule '{name}' of {what}, `{rule}`, gives {type(value).__name__}, not true or false; compare a "
                "median, a mean or a share."
            )
        if value:
            return name
    return "undecided"


def filled(sentence: str, figures: Mapping[str, Values], what: str) -> str:
    """A sentence in which `{expression:format}` is replaced by the expression's value.

    Raises UsageError for an expression that gives no number, or a format that does not suit it.
    """
    parts = []
    for text, expression, layout in _pieces(sentence, what):
        parts.append(text)
        if expression is None:
            continue
        value = evaluate(expression, figures, f"The sentence of {what}")
        if not isinstance(value, bool | int | float):
            raise UsageError(f"In the sentence of {what}, `{expression}` gives {type(value).__name__}, not a number.")
        try:
            parts.append(format(value, layout))
        except (ValueError, OverflowError) as error:
            raise UsageError(f"The sentence of {what} cannot be filled in: {error}.") from None
    return "".join(parts)


def check_sentence(sentence: str, figures: Collection[str], what: str) -> None:
    """Raise UsageError for a sentence that cannot be filled in, whatever its figures are."""
    for _, expression, _ in _pieces(sentence, what):
        if expression is not None:
            check(expression, figures, f"The sentence of {what}")


def _pieces(sentence: str, what: str) -> list[tuple[str, str | None, str]]:
    try:
        pieces = list(string.Formatter().parse(sentence))
    except ValueError as error:
        raise UsageError(f"The sentence of {what} cannot be filled in: {error}.") from None
    for _, expression, layout, conversion in pieces:
        if conversion or re.search(r"\d{3}|[{}]", layout or ""):
            raise UsageError(
                f"The sentence of {what} cannot be filled in: `{{{expression}…}}` has a format that is none of a "
                "number's, such as `:.3g` or `:.0%`."
            )
    return [(text, expression, layout or "") for text, expression, layout, _ in pieces]
