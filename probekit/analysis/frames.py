"""Rows of columns as a pandas.DataFrame. pandas is imported when it is asked for, and need not be installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probekit.analysis.notebook import columns_of
from probekit.errors import UsageError

if TYPE_CHECKING:
    import pandas

LARGEST = 2**63


def frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pandas.DataFrame:
    """The rows as a frame, with these columns or those that they have.

    Raises UsageError if pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UsageError("Tables as data frames need pandas, which is not installed: pip install pandas.") from None
    series = {}
    for column in columns or columns_of(rows):
        values = [row.get(column) for row in rows]
        series[column] = pandas.Series(values, dtype=_dtype(values))
    return pandas.DataFrame(series)


def _dtype(values: Sequence[Any]) -> str | None:
    """The dtype that keeps whole numbers and truth values what they are beside missing ones; else pandas' own."""
    kinds = {type(value) for value in values if value is not None}
    if None in values and kinds == {bool}:
        return "boolean"
    if None in values and kinds == {int} and all(value is None or abs(value) < LARGEST for value in values):
        return "Int64"
    return "float64" if kinds <= {int, float} and float in kinds else None
