"""Token sequences that were found before: by the other analyses of this run, and by saved runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit import Result, TokenSequence, UsageError, read_run

if TYPE_CHECKING:
    from torch import nn

    from probekit import Subject

Scalar = str | int | float | bool | None
Labels = dict[str, Scalar]

OURS = "repetition"
# What tells sequences of one group apart; every other label makes a group of its own.
POOLED = ("prompt", "restart", "step", "walker", "walk", "sample", "seed", "position", "index", "piece")
# Labels that say something of one sequence, and nothing of where it belongs.
SAID = ("text", "reasons")
# Lists that are no texts: what was given, and single tokens that a table names.
NO_TEXTS = ("prompt", "vocabulary")
# Labels with a column of their own; the rest stand together in "variant".
COLUMNS = ("site", "rank")


@dataclass
class Origin:
    """The run that sequences come from: its labels for a table row, its results, and its vocabulary."""

    labels: Labels
    results: Mapping[str, Result]
    vocabulary: int


@dataclass
class Group:
    """Sequences that belong together, such as the first choices at one site, over prompts and restarts.

    `sequences` are those at the end of a descent or a walk; `steps` are all of them by step, where there are steps.
    `prompts` are the prompts of these, None where none of the same length is known.
    """

    labels: Labels
    vocabulary: int
    sequences: list[TokenSequence] = field(default_factory=list)
    prompts: list[list[int] | None] = field(default_factory=list)
    steps: dict[int, list[TokenSequence]] = field(default_factory=dict)


def this_run(subject: Subject, results: Mapping[str, Result]) -> Origin:
    """The run that is being made. What it knows of its model is the subject's."""
    facts = subject.facts
    path = str(getattr(getattr(subject.model, "config", None), "_name_or_path", ""))
    name = "demo" if facts.get("source") == "demo" else Path(path).name or type(subject.model).__name__
    random = facts.get("source") == "random weights"
    eight, four = (getattr(subject.model, f"is_loaded_in_{bits}", False) for bits in ("8bit", "4bit"))
    dtype = str(getattr(subject.model, "dtype", "")).removeprefix("torch.")
    labels: Labels = {
        "run": "this run",
        "model": name,
        "parameters": _parameters(subject.model),
        "weights": "random" if random else "pretrained",
        "precision": "int8" if eight else "4 bit" if four else dtype,
        "depth": f"{len(subject.anatomy.blocks)} blocks",
    }
    return Origin(labels, results, subject.vocabulary)


def _parameters(model: nn.Module) -> int:
    """How many numbers a model learns. Where it is offloaded, weights that are tied are so in name only."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    named = model.named_parameters(remove_duplicate=False)
    return sum({id(weight): weight.numel() for name, weight in named if not (weight.is_meta and name in tied)}.values())


def saved(paths: Sequence[str], subject: Subject) -> list[Origin]:
    """The saved runs, labelled by their models. Raises UsageError with one sentence for a path that is no run."""
    found = []
    for path in paths:
        run = read_run(path)
        if not run.results:
            raise UsageError(f"The run '{path}' has no analysis that is done, so there is nothing to read from it.")
        spec, facts = _model(run.manifest, path)
        blocks = _own(run.results, "blocks") or spec.get("depth")
        labels: Labels = {
            "run": Path(path).resolve().name,
            "model": Path(str(spec.get("name", "demo"))).name,
            "parameters": facts.get("parameters"),
            "weights": str(spec.get("weights", "pretrained")),
            "precision": str(spec.get("quantization") or facts.get("dtype", "")),
            "depth": f"{blocks} blocks" if blocks else "whole",
        }
        found.append(Origin(labels, run.results, _vocabulary(run.results, subject)))
    names = [origin.labels["run"] for origin in found]
    for origin, path in zip(found, paths, strict=True):
        if names.count(origin.labels["run"]) > 1:  # folders of the same name: told apart by where they lie
            origin.labels["run"] = f"{Path(path).resolve().parent.name}/{Path(path).resolve().name}"
    return found


def _model(manifest: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    spec, facts = manifest.get("configuration", {}).get("model", {}), manifest.get("model", {})
    if not isinstance(spec, Mapping) or not isinstance(facts, Mapping):
        raise UsageError(f"The run '{path}' does not say which model it is of; its run.json is damaged.")
    return spec, facts


def _vocabulary(results: Mapping[str, Result], subject: Subject) -> int:
    """What the run itself says; else this model's, if all ids are of it; else as many tokens as its ids need."""
    known = _own(results, "vocabulary")
    if known is not None:
        return known
    largest = max((max(s.ids, default=0) for r in results.values() for g in r.sequences.values() for s in g), default=0)
    return subject.vocabulary if largest < subject.vocabulary else largest + 1


def _own(results: Mapping[str, Result], metric: str) -> int | None:
    """What a repetition analysis of that run says of its model."""
    known = results[OURS].metrics.get(metric) if OURS in results else None
    return known if isinstance(known, int) else None


def encoded(origins: Iterable[Origin], predicted: Sequence[str]) -> bytes:
    """What is measured of these runs, as a JSON file: their sequences without the texts of tokens, and what a model
    predicted along texts of its own, the columns `predicted` of the table `generated`.
    """
    ours = ("run", "strategy", "stage", *predicted)

    def sequences(analysis: str, result: Result) -> dict[str, Any]:
        return {
            name: [
                {
                    "ids": sequence.ids,
                    "labels": {label: value for label, value in sequence.labels.items() if label not in SAID},
                }
                for sequence in group
            ]
            for name, group in result.sequences.items()
            if (name == "generated" if analysis == OURS else name == "prompt" or name not in NO_TEXTS)
        }

    def generated(analysis: str, result: Result) -> list[dict[str, Any]]:
        rows = result.tables.get("generated", []) if analysis == OURS else []
        return [{name: row.get(name) for name in ours} for row in rows]

    document = [
        {
            "labels": origin.labels,
            "vocabulary": origin.vocabulary,
            "results": {
                analysis: {"sequences": sequences(analysis, result), "generated": generated(analysis, result)}
                for analysis, result in origin.results.items()
            },
        }
        for origin in origins
    ]
    return (json.dumps(document) + "\n").encode()


def read(content: bytes) -> list[Origin]:
    """The same from such a file."""

    def result(found: Mapping[str, Any]) -> Result:
        sequences = {
            name: [TokenSequence(each["ids"], [], each["labels"]) for each in group]
            for name, group in found["sequences"].items()
        }
        return Result(sequences=sequences, tables={"generated": found["generated"]})

    return [
        Origin(each["labels"], {name: result(found) for name, found in each["results"].items()}, each["vocabulary"])
        for each in json.loads(content)
    ]


def decoded(origin: Origin) -> list[Group]:
    """The groups of every named list of texts but the prompts, by analysis, name, site, rank and the rest."""
    groups: dict[tuple[object, ...], Group] = {}
    for analysis, result in origin.results.items():
        if analysis == OURS:
            continue
        prompts = result.sequences.get("prompt", [])
        for name, sequences in result.sequences.items():
            if name in NO_TEXTS:
                continue
            ends = _ends(sequences)
            for sequence, at_end in zip(sequences, ends, strict=True):
                own = {label: value for label, value in sequence.labels.items() if label not in POOLED + SAID}
                key = (analysis, name, *sorted((label, str(value)) for label, value in own.items()))
                if key not in groups:
                    variant = ", ".join(f"{label} {value}" for label, value in own.items() if label not in COLUMNS)
                    labels: Labels = {**origin.labels, "analysis": analysis, "name": name}
                    labels |= {column: own.get(column) for column in COLUMNS} | {"variant": variant or None}
                    groups[key] = Group(labels, origin.vocabulary)
                step = sequence.labels.get("step")
                if isinstance(step, int):
                    groups[key].steps.setdefault(step, []).append(sequence)
                if at_end and sequence.ids:
                    groups[key].sequences.append(sequence)
                    groups[key].prompts.append(_prompt_of(sequence, prompts))
    return [group for group in groups.values() if group.sequences]


def _ends(sequences: Iterable[TokenSequence]) -> list[bool]:
    """Whether each sequence is the last step of its own descent or walk; those without steps are."""
    listed = list(sequences)
    keys = [tuple(sorted((k, str(v)) for k, v in s.labels.items() if k not in ("step", "rank", *SAID))) for s in listed]
    last: dict[tuple[tuple[str, str], ...], int] = {}
    for key, sequence in zip(keys, listed, strict=True):
        step = sequence.labels.get("step")
        if isinstance(step, int):
            last[key] = max(step, last.get(key, step))
    return [key not in last or s.labels.get("step") == last[key] for key, s in zip(keys, listed, strict=True)]


def _prompt_of(sequence: TokenSequence, prompts: Sequence[TokenSequence]) -> list[int] | None:
    number = sequence.labels.get("prompt")
    of_it = [prompt.ids for prompt in prompts if prompt.labels.get("prompt") == number or len(prompts) == 1]
    return of_it[0] if of_it and len(of_it[0]) == len(sequence.ids) else None


def accuracy(ids: Sequence[int], prompt: Sequence[int]) -> float:
    """The share of tokens that stand in the prompt at the same position."""
    return sum(one == other for one, other in zip(ids, prompt, strict=True)) / len(prompt)
