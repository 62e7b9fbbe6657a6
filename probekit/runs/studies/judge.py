"""Judging: from the cells' results to the figures of an expectation, and from these to a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probekit.errors import UsageError, nearest
from probekit.runs.outcome import Run
from probekit.runs.studies.cells import Cell
from probekit.runs.studies.file import AT_FAULT, INCOMPLETE, UNTESTED, Expectation, Figure, StudyFile, substituted
from probekit.runs.studies.rules import check, check_sentence, filled, verdict


@dataclass
class Judgement:
    """An expectation with its figures' values, its verdict, and whether that is one that it should have."""

    expectation: Expectation
    verdict: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    because: str = ""
    cells: list[str] = field(default_factory=list)

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
        for name, figure in expectation.figures.items():
            _check_figure(figure, cells, f"The figure '{name}' of {expectation.id}")
        for name, rule in expectation.verdicts.items():
            check(rule, expectation.figures, f"The rule '{name}' of {expectation.id}")
        if not expectation.untested:
            check_sentence(expectation.because, expectation.figures, expectation.id)
    for chart in file.charts:
        what = f"The chart '{chart.caption}'"
        _check_figure(chart.figure, cells, what)
        by_variable(chart.figure, chart.x, chart.series, cells, {}, what)


def _check_figure(figure: Figure, cells: Sequence[Cell], what: str) -> None:
    for cell in matching(figure, cells, what):
        _analysis(figure, cell, what)
        for text in (figure.metric, figure.rows):
            substituted(text, cell.variables)


def judge(expectation: Expectation, cells: Sequence[Cell], runs: Mapping[str, Run]) -> Judgement:
    """The verdict on what is there: `at fault`, with the sentence, for a figure or a rule that turns out to be."""
    if expectation.untested:
        return Judgement(expectation, UNTESTED, because=expectation.untested)
    try:
        return _judged(expectation, cells, runs)
    except UsageError as error:
        return Judgement(expectation, AT_FAULT, because=str(error))


def _judged(expectation: Expectation, cells: Sequence[Cell], runs: Mapping[str, Run]) -> Judgement:
    figures: dict[str, list[float]] = {}
    used: list[str] = []
    missing = 0
    for name, figure in expectation.figures.items():
        what = f"the figure '{name}' of {expectation.id}"
        chosen = matching(figure, cells, what)
        there = [cell for cell in chosen if _is_there(figure, cell, runs, what)]
        missing += len({cell.key for cell in chosen} - {cell.key for cell in there})
        used += [cell.key for cell in there]
        figures[name] = [value for cell in there for value in values(figure, cell, runs, what)]
    empty = [name for name, found in figures.items() if not found]
    kept = list(dict.fromkeys(used))
    if missing or empty:
        lacking = f"{missing} of its cells are missing or failed" if missing else f"no value for {', '.join(empty)}"
        return Judgement(expectation, INCOMPLETE, figures, f"Not judged: {lacking}.", kept)
    found = verdict(expectation.verdicts, figures, expectation.id)
    return Judgement(expectation, found, figures, filled(expectation.because, figures, expectation.id), kept)


def matching(figure: Figure, cells: Sequence[Cell], what: str) -> list[Cell]:
    """The cells of the figure's run with these variables. Raises UsageError if there is none."""
    of_run = [cell for cell in cells if cell.run == figure.run]
    for variable, wanted in figure.where.items():
        known = of_run[0].variables
        if variable not in known:
            raise UsageError(
                f"{what} asks for '{variable}', but the variables of '{figure.run}' are: {', '.join(known)}."
                f"{nearest(variable, known)}"
            )
        options = wanted if isinstance(wanted, list) else [wanted]
        of_run = [cell for cell in of_run if cell.variables[variable] in options]
        if not of_run:
            raise UsageError(f"{what} asks for {variable} = {wanted!r}, which no cell of '{figure.run}' has.")
    return of_run


def values(figure: Figure, cell: Cell, runs: Mapping[str, Run], what: str) -> list[float]:
    """The figure's values from one cell: one for a metric, one a row for a table; what is missing there is left out.

    Raises UsageError if the cell has no such analysis, metric, table or column.
    """
    result = runs[cell.key].results[_analysis(figure, cell, what)]
    if figure.metric is not None:
        name = substituted(figure.metric, cell.variables)
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
        wanted = substituted(figure.rows, cell.variables)
        column = figure.column or ""
        columns = {name: None for row in rows for name in row}
        for asked in (column, *wanted):
            if rows and asked not in columns:
                raise UsageError(
                    f"The table '{figure.table}' has no column '{asked}', as {what} names it; its columns are: "
                    f"{', '.join(columns)}.{nearest(asked, columns)}"
                )
        chosen = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
        found = [row.get(column) for row in chosen]
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    return [value for value in numbers if math.isfinite(value)]


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


def by_variable(
    figure: Figure, x: str, series: str | None, cells: Sequence[Cell], runs: Mapping[str, Run], what: str
) -> dict[str, dict[Any, list[float]]]:
    """The figure's values by the value of a variable, for each value of another."""
    found: dict[str, dict[Any, list[float]]] = {}
    for cell in matching(figure, cells, what):
        for name in (x, *([series] if series else [])):
            if name not in cell.variables:
                raise UsageError(f"{what} is drawn over '{name}', but the variables are: {', '.join(cell.variables)}.")
        if _is_there(figure, cell, runs, what):
            line = f"{series} {cell.variables[series]}" if series else figure.run
            at = cell.variables[x]
            place = at if isinstance(at, str | int | float) else str(at)  # a table or a list is no place on an axis
            found.setdefault(line, {}).setdefault(place, []).extend(values(figure, cell, runs, what))
    return found
