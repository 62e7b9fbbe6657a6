"""A study file: runs, sweeps over anything in them, and expectations with the rules that judge them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from probekit.errors import UsageError, nearest
from probekit.runs.toml import read_toml

# `$name` or `${name}`.
NAME = r"\$(?:(\w+)|\{(\w+)\})"
# Verdicts that no rule gives: there is nothing to judge, not all of it yet, or something that cannot be judged.
UNTESTED, INCOMPLETE, AT_FAULT = "not tested", "incomplete", "at fault"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunSpec(_Part):
    """Cells of one kind: a run's configuration, in which `$name` stands for a parameter, a swept value or the seed."""

    about: str = ""
    model: str | dict[str, Any] = "demo"
    plugins: Names = Field(min_length=1)
    options: dict[str, Any] = {}
    prompts: Names = []
    input_ids: list[list[int]] | str = []
    special_tokens: bool | str = True
    seeds: int | list[int] | str = Field(1, description="How many seeds, from 0, or which.")
    sweep: dict[str, Any] = {}


class Figure(_Part):
    """Values from every cell of a run, or of those `where` variables have these values: a metric of each, or a table's
    column over the rows that match, with `missing` for those without a value. `$name` stands for a parameter, or for
    the cell's own variable.
    """

    run: str
    where: dict[str, Any] = {}
    analysis: str | None = None
    metric: str | None = None
    table: str | None = None
    column: str | None = None
    rows: dict[str, Any] = {}
    missing: StrictInt | StrictFloat | str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Figure:
        if (self.metric is None) == (self.table is None) or (self.table is None) != (self.column is None):
            raise ValueError("a figure has either a metric, or a table and a column")
        return self


class Expectation(_Part):
    """A claim, its figures, and the verdict: the first whose rule is true, or `undecided`.

    `each` names a swept variable: the claim is judged once for each of its values. `expect` names the verdicts that let
    the study pass; without it any does. `because` is one sentence, in which `{median(near):.3g}` stands for the value
    of an expression, and `follows` another, for each verdict, on what follows from it. `untested` says why there is
    nothing to measure, at all or where the runs of the figures have no cells.
    """

    id: str
    claim: str
    source: str = ""
    test: str = ""
    each: str | None = None
    figures: dict[str, Figure] = {}
    verdicts: dict[str, str] = {}
    expect: Names = []
    because: str = ""
    follows: dict[str, str] = {}
    untested: str = ""

    @model_validator(mode="after")
    def _testable(self) -> Expectation:
        if bool(self.figures) != bool(self.verdicts) or not (self.figures or self.untested):
            raise ValueError("an expectation has figures and verdicts, or the sentence `untested`")
        return self


class Chart(_Part):
    """A figure against a variable of its cells: median and range, one line for each value of `series`, and one chart
    for each value of `each`. It stands with the expectation `beside`, or on top of the report.
    """

    caption: str
    beside: str | None = None
    each: str | None = None
    figure: Figure
    x: str
    series: str | None = None
    y: str = "value"
    log_y: bool = False


class StudyFile(_Part):
    """The whole file."""

    title: str
    question: str = ""
    about: str = ""
    parameters: dict[str, Any] = {}
    runs: dict[str, RunSpec] = Field(min_length=1)
    expectations: list[Expectation] = []
    charts: list[Chart] = []


def read_study(path: Path, changed: Mapping[str, Any]) -> StudyFile:
    """A study file with some of its parameters changed.

    Raises UsageError with one sentence if it cannot be read, is no study, or names a run or parameter that it has not.
    """
    values = read_toml(path, "The study")
    try:
        study = StudyFile.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"The study '{path}' cannot be used: {_sentence(error)}") from None
    for name in changed:
        if name not in study.parameters:
            known = ", ".join(study.parameters) or "none"
            raise UsageError(
                f"The study has no parameter '{name}'; its parameters are: {known}.{nearest(name, study.parameters)}"
            )
    _check(study)
    return study.model_copy(update={"parameters": _settled({**study.parameters, **changed})})


def _settled(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, where one may stand for another that comes before it: `untrained = "$model"`.

    A dollar sign within a text is one.
    """
    settled: dict[str, Any] = {}
    for name, value in parameters.items():
        try:
            alone = isinstance(value, str) and re.fullmatch(NAME, value)
            settled[name] = substituted(value, settled) if alone else value
        except UsageError as error:
            raise UsageError(f"The parameter '{name}' can stand for those before it only: {error}") from None
    return settled


def _check(study: StudyFile) -> None:
    figures = [
        (f"The figure '{name}' of {expectation.id}", figure)
        for expectation in study.expectations
        for name, figure in expectation.figures.items()
    ]
    figures += [(f"The chart '{chart.caption}'", chart.figure) for chart in study.charts]
    for what, figure in figures:
        if figure.run not in study.runs:
            raise UsageError(
                f"{what} is of the run '{figure.run}', but the runs are: {', '.join(study.runs)}."
                f"{nearest(figure.run, study.runs)}"
            )
    for expectation in study.expectations:
        for name in expectation.figures:
            if not name.isidentifier() or iskeyword(name):
                raise UsageError(
                    f"'{name}' is no name of a figure ({expectation.id}); rules call it by its name, so use letters, "
                    "digits and _."
                )
        for name in (UNTESTED, INCOMPLETE, AT_FAULT):
            if name in expectation.verdicts:
                raise UsageError(f"{expectation.id} has a rule '{name}', which no rule decides; call it otherwise.")
        possible = [*expectation.verdicts, "undecided"]
        for asked, names in (("expects", expectation.expect), ("says what follows from", expectation.follows)):
            for name in names:
                if name not in possible:
                    raise UsageError(
                        f"{expectation.id} {asked} '{name}', but its verdicts are: {', '.join(possible)}."
                        f"{nearest(name, possible)}"
                    )
    ids = [expectation.id for expectation in study.expectations]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise UsageError(f"The study has two expectations with the id '{twice[0]}'; give each its own.")
    for chart in study.charts:
        if chart.beside is not None and chart.beside not in ids:
            raise UsageError(
                f"The chart '{chart.caption}' stands beside '{chart.beside}', which is no id of an expectation."
                f"{nearest(chart.beside, ids)}"
            )
    for name in study.runs:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise UsageError(f"'{name}' is no name of a run; use letters, digits and hyphens.")


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    where = f"at '{key}': " if key else ""
    return f"{where}{message[:1].lower() + message[1:]}."


def substituted(value: Any, variables: Mapping[str, Any]) -> Any:
    """A value in which `$name` and `${name}` are replaced: by the variable itself where that is all there is, else by
    its text. `$$` is a dollar sign. Raises UsageError for a name that stands for nothing.
    """
    if isinstance(value, dict):
        return {key: substituted(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [substituted(part, variables) for part in value]
    if not isinstance(value, str):
        return value

    def named(match: re.Match[str]) -> Any:
        name = match[1] or match[2]
        if name not in variables:
            known = ", ".join(f"${known}" for known in variables) or "none"
            raise UsageError(f"'{value}' names ${name}, but the variables here are: {known}.{nearest(name, variables)}")
        return variables[name]

    whole = re.fullmatch(NAME, value)
    if whole:
        return named(whole)
    parts = [re.sub(NAME, lambda match: str(named(match)), part) for part in value.split("$$")]
    return "$".join(parts)
