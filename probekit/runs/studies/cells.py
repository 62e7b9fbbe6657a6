"""Cells: the runs that a study comes to, one for each combination of swept values and seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from probekit.errors import ProbekitError, UsageError, quoted
from probekit.plugins import Plugins
from probekit.runs.config import Resolved, resolve
from probekit.runs.studies.file import RunSpec, StudyFile, substituted

MOST_CELLS = 10_000  # of one run of a study: each is a run directory


@dataclass(frozen=True)
class Cell:
    """One run of a study, its variables, the key that follows from its configuration alone, and the values that the
    configuration was resolved from.
    """

    run: str
    variables: dict[str, Any]
    resolved: Resolved
    key: str
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`depth (block 3, seed 0)`."""
        shown = ", ".join(f"{name} {value}" for name, value in self.variables.items())
        return f"{self.run} ({shown})"


def expand(study: StudyFile, plugins: Plugins, granted: Collection[str] = ()) -> list[Cell]:
    """Every cell, in the order of the file, which may say of `GRANTS` what is `granted` only.

    Raises UsageError or PluginError for a run that cannot be configured.
    """
    cells = []
    for name, spec in study.runs.items():
        for variables in _combinations(name, spec, study.parameters):
            known = {**study.parameters, **variables}
            values: dict[str, Any] = {
                key: substituted(getattr(spec, key), known) for key in ("model", "plugins", "options", "special_tokens")
            }
            for key in ("prompts", "input_ids"):
                if getattr(spec, key):
                    values[key] = substituted(getattr(spec, key), known)
            for key in ("plugins", "prompts"):
                if key in values:  # one name may stand for a list of them
                    values[key] = [
                        part for each in values[key] for part in (each if isinstance(each, list) else [each])
                    ]
            values["seed"] = variables["seed"]
            try:
                resolved = resolve([(name, values)], plugins, granted)
            except ProbekitError as error:
                raise type(error)(f"The run '{name}' of the study: {error}") from None
            cells.append(Cell(name, variables, resolved, key_of(resolved), values))
    return cells


def _combinations(name: str, spec: RunSpec, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The values of the swept variables and the seed, the last varying fastest."""
    seeds = substituted(spec.seeds, parameters)
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        seeds = list(range(min(seeds, MOST_CELLS + 1)))
    if "seed" in spec.sweep:
        raise UsageError(f"The run '{name}' sweeps 'seed', which `seeds` does: seeds = [5, 6].")
    if not isinstance(seeds, list) or not seeds:
        raise UsageError(f"The seeds of the run '{name}' are {quoted(seeds)}; expected how many, or a list of them.")
    # A single value is a list of one. An empty list is no mistake: what it would run is not asked for.
    swept = {variable: _as_list(values) for variable, values in substituted(dict(spec.sweep), parameters).items()}
    swept["seed"] = seeds
    for variable in swept:
        if variable in parameters:
            raise UsageError(f"The run '{name}' sweeps '{variable}', which is a parameter of the study; rename one.")
    if not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"The seeds of the run '{name}' are {quoted(seeds)}; expected whole numbers from 0 on.")
    if prod(map(len, swept.values())) > MOST_CELLS:
        raise UsageError(f"The run '{name}' has more than {MOST_CELLS:,} cells; sweep over less, or take fewer seeds.")
    for chosen in product(*swept.values()):
        yield dict(zip(swept, chosen, strict=True))


def _as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def key_of(resolved: Resolved) -> str:
    """The same for the same configuration, options' defaults included: a cell that another run has too is shared."""
    document = resolved.document()["configuration"]
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def share(cells: list[Cell], shard: tuple[int, int]) -> list[Cell]:
    """The cells of shard i of n, by turns among the different ones, so that every shard has some of each run."""
    index, count = shard
    order = {key: place for place, key in enumerate(dict.fromkeys(cell.key for cell in cells))}
    return [cell for cell in cells if order[cell.key] % count == index - 1]


def by_model(cells: Sequence[Cell]) -> list[Cell]:
    """The cells in their order, but those of one model together, where its first is."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.resolved.config.model.model_dump_json(), []).append(cell)
    return [cell for group in groups.values() for cell in group]
