"""Judging: from the cells' results to the figures of an expectation, and from these to a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probekit.errors import UsageError, nearest
from probekit.runs.outcome import Run
from probekit.runs.studies.cells import Cell
from probekit.runs.studies.file import (
    AT_FAULT,
    INCOMPLETE,
    UNTESTED,
    Chart,
    Expectation,
    Figure,
    StudyFile,
    substituted,
)
from probekit.runs.studies.rules import check, check_sentence, filled, verdict


@dataclass
class Judgement:
    """An expectation with its figures' values, its verdict, and whether that is one that it should have.

    `value` is that of the variable `each`, where the expectation has one.
    """

    expectation: Expectation
    verdict: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    because: str = ""
    cells: list[str] = field(default_factory=list)
    value: Any = None
    follows: str = ""

    @property
    def label(self) -> str:
        """`depth`, or `depth (model gpt2)` for one of several values of a variable."""
        return f"{self.expectation.id} ({self.of})" if self.of else self.expectation.id

    @property
    def of(self) -> str:
        """`model gpt2`: what it is judged of, where the expectation has one verdict for each value."""
        return "" if self.value is None else f"{self.expectation.each} {self.value}"

    @property
    def met(self) -> bool | None:
        """None where the expectation takes any verdict, or there is none yet; one at fault is not met."""
        if self.verdict == AT_FAULT:
            return False
        if not self.expectation.expect or self.verdict in (UNTESTED, INCOMPLETE):
            return None
        return self.verdict in self.expectation.expect


def check_study(file: StudyFile, cells: Sequence[Cell]) -> None:
    """Raise UsageError for a figure, rule or chart that can be seen to be at fault before anything is run."""
    for expectation in file.expectations:
        _each_value(expectation.each, expectation.figures.values(), cells, expectation.id)
        for name, figure in expectation.figures.items():
            _check_figure(figure, cells, file.parameters, f"The figure '{name}' of {expectation.id}")
        for name, rule in expectation.verdicts.items():
            check(rule, expectation.figures, f"The rule '{name}' of {expectation.id}")
        if expectation.figures:
            check_sentence(expectation.because, expectation.figures, expectation.id)
            for sentence in expectation.follows.values():
                check_sentence(sentence, expectation.figures, expectation.id)
    for chart in file.charts:
        what = f"The chart '{chart.caption}'"
        _check_figure(chart.figure, cells, file.parameters, what)
        _each_value(chart.each, [chart.figure], cells, what)
        draw_lines(chart, cells, {}, file.parameters)


def _check_figure(figure: Figure, cells: Sequence[Cell], parameters: Mapping[str, Any], what: str) -> None:
    for cell in matching(figure, cells, parameters, what):
        _analysis(figure, cell, what)
        known = {**parameters, **cell.variables}
        for part in (figure.metric, figure.rows):
            substituted(part, known)
        _stand_in(figure, known, what)


def judge(
    expectation: Expectation, cells: Sequence[Cell], runs: Mapping[str, Run], parameters: Mapping[str, Any]
) -> list[Judgement]:
    """The verdict on what is there, or one for each value of the variable `each`.

    It is `at fault`, with the sentence, for a figure or a rule that turns out to be, and `not tested` where a run of
    its figures has no cells.
    """
    of_runs = {figure.run for figure in expectation.figures.values()}
    without = sorted(run for run in of_runs if not any(cell.run == run for cell in cells))
    if without or not expectation.figures:
        reason = expectation.untested or f"Nothing is asked for of the run {', '.join(without)}."
        return [Judgement(expectation, UNTESTED, because=reason)]
    judgements = []
    for value in _each_value(expectation.each, expectation.figures.values(), cells, expectation.id):
        chosen = [cell for cell in cells if _is_of(cell, expectation.each, value)]
        try:
            found = _judged(expectation, chosen, runs, parameters)
        except UsageError as error:
            found = Judgement(expectation, AT_FAULT, because=str(error))
        found.value = value
        judgements.append(found)
    return judgements


def _each_value(variable: str | None, figures: Iterable[Figure], cells: Sequence[Cell], what: str) -> list[Any]:
    """Every value of a variable in the runs of these figures, or [None]. Raises UsageError if none of them has it."""
    if variable is None:
        return [None]
    runs = {figure.run for figure in figures}
    of_runs = [cell for cell in cells if cell.run in runs]
    found = [cell.variables[variable] for cell in of_runs if variable in cell.variables]
    if of_runs and not found:
        known = list(dict.fromkeys(name for cell in of_runs for name in cell.variables))
        raise UsageError(
            f"{what} is for each '{variable}', but the variables of its runs are: {', '.join(known)}."
            f"{nearest(variable, known)}"
        )
    return [value for place, value in enumerate(found) if value not in found[:place]]


def _is_of(cell: Cell, variable: str | None, value: Any) -> bool:
    return variable is None or variable not in cell.variables or cell.variables[variable] == value


def _judged(
    expectation: Expectation, cells: Sequence[Cell], runs: Mapping[str, Run], parameters: Mapping[str, Any]
) -> Judgement:
    figures: dict[str, list[float]] = {}
    used: list[str] = []
    missing: set[str] = set()
    for name, figure in expectation.figures.items():
        what = f"the figure '{name}' of {expectation.id}"
        chosen = matching(figure, cells, parameters, what)
        there = [cell for cell in chosen if _is_there(figure, cell, runs, what)]
        missing |= {cell.key for cell in chosen} - {cell.key for cell in there}
        used += [cell.key for cell in there]
        figures[name] = [value for cell in there for value in values(figure, cell, runs, parameters, what)]
    empty = [name for name, found in figures.items() if not found]
    kept = list(dict.fromkeys(used))
    if missing or empty:
        lacking = f"no value for {', '.join(empty)}"
        if missing:
            lacking = f"{len(missing)} of its cells are missing or failed"
        return Judgement(expectation, INCOMPLETE, figures, f"Not judged: {lacking}.", kept)
    found = verdict(expectation.verdicts, figures, expectation.id)
    because = filled(expectation.because, figures, expectation.id)
    follows = filled(expectation.follows.get(found, ""), figures, expectation.id)
    return Judgement(expectation, found, figures, because, kept, follows=follows)


def matching(figure: Figure, cells: Sequence[Cell], parameters: Mapping[str, Any], what: str) -> list[Cell]:
    """The cells of the figure's run with these variables. Raises UsageError if it has cells, and none of them."""
    of_run = [cell for cell in cells if cell.run == figure.run]
    for variable, value in figure.where.items():
        if not of_run:
            return []
        known = of_run[0].variables
        if variable not in known:
            raise UsageError(
                f"{what} asks for '{variable}', but the variables of '{figure.run}' are: {', '.join(known)}."
                f"{nearest(variable, known)}"
            )
        wanted = substituted(value, parameters)
        options = wanted if isinstance(wanted, list) else [wanted]
        of_run = [cell for cell in of_run if cell.variables[variable] in options]
        if not of_run:
            raise UsageError(f"{what} asks for {variable} = {wanted!r}, which no cell of '{figure.run}' has.")
    return of_run


def _stand_in(figure: Figure, known: Mapping[str, Any], what: str) -> float | None:
    """What a missing value counts as. Raises UsageError if that is no number."""
    value = substituted(figure.missing, known)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{what} counts what is missing as {value!r}; expected a number.")
    return float(value)


def values(
    figure: Figure, cell: Cell, runs: Mapping[str, Run], parameters: Mapping[str, Any], what: str
) -> list[float]:
    """The figure's values from one cell: one for a metric, one a row for a table; what is missing there is left out, or
    counts as the figure says.

    Raises UsageError if the cell has no such analysis, metric, table or column.
    """
    result = runs[cell.key].results[_analysis(figure, cell, what)]
    known = {**parameters, **cell.variables}
    if figure.metric is not None:
        name = substituted(figure.metric, known)
        if name not in result.metrics:
            raise UsageError(f"There is no metric '{name}', as {what} names it.{nearest(name, result.metrics)}")
        found = [result.metrics[name]]
    else:
        rows = result.tables.get(figure.table or "")
        if rows is None:
            raise UsageError(
                f"There is no table '{figure.table}', as {what} names it; there are: "
                f"{', '.join(result.tables) or 'none'}.{nearest(figure.table or '', result.tables)}"
            )
        wanted = substituted(figure.rows, known)
        column = figure.column or ""
        columns = {name: None for row in rows for name in row}
        for asked in (column, *wanted):
            if rows and asked not in columns:
                raise UsageError(
                    f"The table '{figure.table}' has no column '{asked}', as {what} names it; its columns are: "
                    f"{', '.join(columns)}.{nearest(asked, columns)}"
                )
        chosen = [row for row in rows if all(_fits(row.get(name), value) for name, value in wanted.items())]
        found = [row.get(column) for row in chosen]
    numbers = [float(value) if isinstance(value, int | float) else math.nan for value in found]
    stand_in = _stand_in(figure, known, what)
    if stand_in is not None:
        return [value if math.isfinite(value) else stand_in for value in numbers]
    return [value for value in numbers if math.isfinite(value)]


def _fits(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def _analysis(figure: Figure, cell: Cell, what: str) -> str:
    """The analysis that the figure is from. Raises UsageError if the cell's run has not that one, or several."""
    names = list(cell.resolved.analyses)
    if figure.analysis is None:
        if len(names) != 1:
            raise UsageError(
                f"{what[:1].upper()}{what[1:]} is of a run with several analyses; say which, "
                f"analysis = …: {', '.join(names)}."
            )
        return names[0]
    if figure.analysis not in names:
        raise UsageError(
            f"The run '{cell.run}' has no analysis '{figure.analysis}', as {what[:1].lower()}{what[1:]} names it; it "
            f"has: {', '.join(names)}.{nearest(figure.analysis, names)}"
        )
    return figure.analysis


def _is_there(figure: Figure, cell: Cell, runs: Mapping[str, Run], what: str) -> bool:
    """Whether the cell has a result of the figure's analysis; another analysis of the same run may have failed."""
    return cell.key in runs and _analysis(figure, cell, what) in runs[cell.key].results


def draw_lines(
    chart: Chart, cells: Sequence[Cell], runs: Mapping[str, Run], parameters: Mapping[str, Any]
) -> list[tuple[Any, dict[str, dict[Any, list[float]]]]]:
    """The figure's values by the value of a variable, for each value of another: so for each value of `each`."""
    what = f"The chart '{chart.caption}'"
    drawn: list[tuple[Any, dict[str, dict[Any, list[float]]]]] = []
    for each in _each_value(chart.each, [chart.figure], cells, what):
        found: dict[str, dict[Any, list[float]]] = {}
        of_each = [cell for cell in cells if _is_of(cell, chart.each, each)]
        for cell in matching(chart.figure, of_each, parameters, what):
            for name in (chart.x, *([chart.series] if chart.series else [])):
                if name not in cell.variables:
                    raise UsageError(
                        f"{what} is drawn over '{name}', but the variables are: {', '.join(cell.variables)}."
                    )
            if _is_there(chart.figure, cell, runs, what):
                line = f"{chart.series} {cell.variables[chart.series]}" if chart.series else chart.figure.run
                at = cell.variables[chart.x]
                place = at if isinstance(at, str | int | float) else str(at)  # a table or a list is no place on an axis
                new = values(chart.figure, cell, runs, parameters, what)
                found.setdefault(line, {}).setdefault(place, []).extend(new)
        drawn.append((each, found))
    return drawn
