"""The sides of a comparison: finished runs read from disk, each with a label that tells it from the others."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probekit.analysis.result import RESULT_FILE, Scalar
from probekit.analysis.result import SCHEMA as RESULT_SCHEMA
from probekit.errors import UsageError
from probekit.report import Page
from probekit.runs.comparison.differences import differing, settings, shown
from probekit.runs.directory import RunDirectory
from probekit.runs.manifest import read_manifest

FINISHED = ("done", "failed")
LONGEST_VALUE = 24


@dataclass(frozen=True)
class Side:
    """One run of a comparison: its manifest, and the page, finding and metrics of each analysis that it finished."""

    path: Path
    label: str
    manifest: dict[str, Any]
    pages: dict[str, Page]
    metrics: dict[str, dict[str, Scalar]]
    failures: dict[str, str]

    @property
    def status(self) -> str:
        return str(self.manifest["status"])


def read_sides(paths: Sequence[Path]) -> list[Side]:
    """The runs in these directories, in this order, labelled.

    Raises UsageError, with one sentence for each directory that cannot be compared: it is named twice, is no run
    directory, is unfinished, or is damaged.
    """
    if len(paths) < 2:
        given = f"'{paths[0]}' alone was given" if paths else "none was given"
        raise UsageError(f"A comparison takes two runs or more, but {given}; name their run directories.")
    places = [os.path.realpath(path) for path in paths]  # which takes a link to itself as it is
    twice = [f"The run '{path}' is named twice." for path, place in zip(paths, places, strict=True)][1:]
    wrong = [sentence for number, sentence in enumerate(twice, 1) if places[number] in places[:number]]
    manifests = []
    for path in paths:
        try:
            manifests.append(_manifest(path))
        except UsageError as error:
            wrong.append(str(error))
    if not wrong:
        sides = []
        for path, label, manifest in zip(paths, _labels(paths, manifests), manifests, strict=True):
            try:
                sides.append(_side(path, label, manifest))
            except UsageError as error:
                wrong.append(str(error))
    if wrong:
        raise UsageError(" ".join(dict.fromkeys(wrong)))
    return sides


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(RunDirectory.open(path))
    status = manifest["status"]
    if status not in FINISHED:
        raise UsageError(
            f"The run '{path}' is not finished (its status is {status!r}); let it come to its end, and compare then."
        )
    return manifest


def _side(path: Path, label: str, manifest: dict[str, Any]) -> Side:
    directory = RunDirectory(path)
    statuses = {name: entry.get("status") for name, entry in manifest["analyses"].items()}
    done = [name for name, status in statuses.items() if status == "done"]
    return Side(
        path=path,
        label=label,
        manifest=manifest,
        pages={name: _page(directory, name) for name in done},
        metrics={name: _metrics(directory, name) for name in done},
        failures={
            name: str(manifest["analyses"][name].get("error", f"The analysis is {status}."))
            for name, status in statuses.items()
            if status != "done"
        },
    )


def _page(directory: RunDirectory, name: str) -> Page:
    file = f"analyses/{name}/page.json"
    try:
        return Page.from_json(directory.read_json(file))
    except ValueError as error:
        raise UsageError(f"The file '{directory.path / file}' is damaged: {error}") from None


def _metrics(directory: RunDirectory, name: str) -> dict[str, Scalar]:
    file = f"analyses/{name}/{RESULT_FILE}"
    result = directory.read_json(file)
    if result.get("schema") != RESULT_SCHEMA:
        raise UsageError(
            f"The file '{directory.path / file}' has another schema than {RESULT_SCHEMA}; another probekit wrote it."
        )
    metrics = result.get("metrics")
    if not isinstance(metrics, dict) or not all(_is_scalar(value) for value in metrics.values()):
        raise UsageError(f"The file '{directory.path / file}' is damaged: its metrics are not single, finite figures.")
    return metrics


def _is_scalar(value: object) -> bool:
    return isinstance(value, Scalar) and not (isinstance(value, float) and not math.isfinite(value))


def _labels(paths: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the runs apart, where that is short ("random weights", "steps 50"), else their folders' names."""
    rows = differing([settings(manifest) for manifest in manifests])
    if 0 < len(rows) <= 2:
        labels = [
            ", ".join(
                _words(key, values[side])
                for key, values in rows.items()
                if values.get(side) is not None and not _is_unused(key, manifest)
            )
            for side, manifest in enumerate(manifests)
        ]
        short = all(len(shown(value)) <= LONGEST_VALUE for values in rows.values() for value in values.values())
        if short and all(labels) and len(set(labels)) == len(labels):
            return labels
    parts = [path.resolve().parts for path in paths]
    depth = next(depth for depth in range(1, max(map(len, parts)) + 1) if _distinct([part[-depth:] for part in parts]))
    return ["/".join(part[-depth:]) for part in parts]


def _distinct(names: Sequence[tuple[str, ...]]) -> bool:
    return len(set(names)) == len(names)


def _is_unused(key: str, manifest: Mapping[str, Any]) -> bool:
    """The seed of random weights says nothing about trained ones."""
    return key == "model.weights_seed" and manifest["configuration"]["model"].get("weights") != "random"


def _words(key: str, value: Any) -> str:
    """A setting and its value as a label: `steps 50`, `int8`, `random weights`."""
    if key == "model.name":
        return Path(str(value)).name or str(value)
    if key == "model.weights":
        return "random weights" if value == "random" else "trained weights"
    if key in ("model.dtype", "model.quantization"):
        return str(value)
    return f"{key.rpartition('.')[2].replace('_', ' ')} {shown(value)}"
