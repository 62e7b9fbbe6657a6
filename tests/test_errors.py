"""Errors are sentences with an exit code each."""

from __future__ import annotations

import pytest

from probekit import errors
from probekit.errors import nearest


@pytest.mark.parametrize(
    ("kind", "code"),
    [("AnalysisError", 1), ("UsageError", 2), ("PluginError", 3), ("ModelError", 4)],
)
def test_each_kind_of_error_has_its_exit_code_and_one_root(kind: str, code: int) -> None:
    error = getattr(errors, kind)("What was wrong.")
    assert isinstance(error, errors.ProbekitError)
    assert error.exit_code == code
    assert str(error) == "What was wrong."


def test_only_a_near_word_is_offered() -> None:
    assert nearest("stps", ["steps", "restarts"]) == " Did you mean 'steps'?"
    assert nearest("zebra", ["steps", "restarts"]) == ""
    assert nearest("steps", []) == ""
    assert nearest("", ["steps"]) == ""
