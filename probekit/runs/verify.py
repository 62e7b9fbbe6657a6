"""Whether what was saved is whole: a run, a recording, or a study, by its hashes, its schema, and its own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import parse_options
from probekit.errors import ProbekitError, UsageError
from probekit.plugins import Plugins
from probekit.report import Page
from probekit.runs.config import RunConfig, read_config
from probekit.runs.containment import quietly
from probekit.runs.directory import SCHEMA, RunDirectory, links
from probekit.runs.hashes import DRAWN, HASHES_FILE, check_hashes
from probekit.runs.joint import JOINT_FILE, comparable
from probekit.runs.keeping import PRINTED_NOTE, draw, explain
from probekit.runs.manifest import read_manifest
from probekit.runs.recompute import Recomputed, listed, recompute
from probekit.runs.render import drawn, read_pages

if TYPE_CHECKING:
    from probekit.analysis import Analysis, Result


# The runs of `probekit run --compare-random`.
PAIR = ("trained", "random")


@dataclass
class Verified:
    """What `verify` found: sentences of what is wrong, and of what is right but worth a word.

    `digest` is one hash of all results of a run or a recording: the same for equal ones, so that it can be published
    beside a report. `recomputed` are the figures by analysis; `parts` the runs of a study by their folders.
    """

    path: Path
    kind: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    digest: str = ""
    recomputed: dict[str, Recomputed] = field(default_factory=dict)
    parts: dict[str, Verified] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and all(part.whole for part in self.parts.values())

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit verify --json` prints."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "whole": self.whole,
            "problems": self.problems,
            "notes": self.notes,
            "files": self.files,
            "digest": self.digest,
            "recomputed": {
                name: {"equal": each.equal, "different": each.different, "left_out": each.left_out}
                for name, each in self.recomputed.items()
            },
            "parts": {name: part.document() for name, part in self.parts.items()},
        }


def verify(path: str | Path, *, recompute: bool = False, manager: Plugins | None = None) -> Verified:
    """Check a run, a recording or a study as `probekit verify` does: that every file is there and is what was written,
    and that each is of its schema. Nothing is written, and no model is loaded.

    With `recompute`, every figure of a run is computed again from its saved tensors, and every page drawn again, by the
    plugins that are installed. What is wrong is in `problems`; UsageError is raised where there is nothing to verify.
    """
    path = Path(path)
    try:
        if (path / "run.json").is_file():
            return _run(path, recompute, manager)
        if (path / "recording.json").is_file():
            return _recording(path)
        if (path / "study.json").is_file():
            return _study(path, recompute, manager)
        if all((path / weights / "run.json").is_file() for weights in PAIR):
            return Verified(path, "pair", parts={weights: _run(path / weights, recompute, manager) for weights in PAIR})
    except (OSError, ValueError) as error:
        raise UsageError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    raise UsageError(
        f"'{path}' is no run, no recording and no study: it has no run.json, recording.json or study.json."
    )


# --- a run -----------------------------------------------------------------------------------------------------------


def _run(path: Path, recompute: bool, manager: Plugins | None) -> Verified:
    found = Verified(path, "run")
    manifest: dict[str, Any] = {}

    def shape() -> None:
        manifest.update(read_manifest(directory))

    if not _holds(found, lambda: RunDirectory.open(path)):
        return found
    directory = RunDirectory(path)
    if not _holds(found, shape):
        return found
    if manifest["status"] not in ("done", "failed"):
        found.problems.append(
            f"The run is {manifest['status']}, not over; go on with it (probekit run --resume), and verify it then."
        )
        return found
    _hashes(found, directory, manifest)
    _statuses(found, manifest)
    _configuration(found, directory, manifest)
    for name, entry in manifest["analyses"].items():
        if entry["status"] == "done":
            _holds(found, lambda name=name: _result(directory, name))  # type: ignore[misc]
    _holds(found, lambda: read_pages(directory, manifest))
    _holds(found, lambda: directory.read_json("timings.json"))
    _report(found, directory, manifest)
    if recompute and not found.problems:
        _recompute(found, directory, manifest, manager)
    return found


def _holds(found: Verified, check: Callable[[], object]) -> bool:
    """Whether a check raises nothing; its sentence is a problem."""
    try:
        check()
    except ProbekitError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
        return False
    return True


def _statuses(found: Verified, manifest: Mapping[str, Any]) -> None:
    """Whether `run.json` tells one story: an entry for each analysis that was asked for, and a status that fits."""
    entries = {**manifest["analyses"], **manifest.get("joint", {})}
    asked = set(manifest["configuration"]["plugins"])
    if set(manifest["analyses"]) != asked:
        found.problems.append(
            f"The file 'run.json' tells of other analyses than were asked for: {listed(sorted(asked))}."
        )
    over = {entry["status"] for entry in entries.values()}
    if not over <= {"done", "failed"} or (manifest["status"] == "failed") != ("failed" in over):
        found.problems.append(f"The file 'run.json' says '{manifest['status']}', which its analyses do not.")
    failed = [name for name, entry in entries.items() if entry["status"] == "failed"]
    if failed:
        found.notes.append(f"Without a result, because it failed: {listed(failed)}.")


def _hashes(found: Verified, directory: RunDirectory, manifest: Mapping[str, Any]) -> None:
    if _without_hashes(manifest) and not (directory.path / HASHES_FILE).is_file():
        found.notes.append("The run was written before runs had hashes (probekit 0.1), so its files are not compared.")
        return
    try:
        hashed = check_hashes(directory, manifest)
    except UsageError as error:
        found.problems.append(str(error))
        return
    found.files, found.digest = hashed.count, hashed.digest
    found.problems += [f"The file '{name}' is missing." for name in hashed.missing]
    found.problems += [f"The file '{name}' is not what was written: its hash is another." for name in hashed.changed]
    if hashed.others:
        found.notes.append(f"Not of the run, and not looked at: {listed(hashed.others)}.")


def _without_hashes(manifest: Mapping[str, Any]) -> bool:
    return manifest["schema"] < SCHEMA and str(manifest["versions"].get("probekit")).startswith("0.1.")


def _configuration(found: Verified, directory: RunDirectory, manifest: Mapping[str, Any]) -> None:
    """Whether `config.toml`, which repeats the run, is what `run.json` says was run."""
    try:
        config = RunConfig.model_validate(read_config(directory.path / "config.toml"))
    except UsageError as error:
        found.problems.append(str(error))
        return
    said = manifest["configuration"]
    written = config.model_dump(mode="json")
    for key in ("model", "plugins", "prompts", "input_ids", "special_tokens", "seed", "activations"):
        if key in said and said[key] != written[key] and not _extends(said[key], written[key]):
            found.problems.append(f"The file 'config.toml' has another '{key}' than run.json.")
    for name, entry in manifest["analyses"].items():
        place = directory.analysis(name) / "options.json"
        if entry["status"] == "done" and place.is_file():
            options = directory.read_json(f"analyses/{name}/options.json")
            if options != said["options"].get(name):
                found.problems.append(f"The options of '{name}' are others in run.json than in its options.json.")


def _extends(said: object, written: object) -> bool:
    """Whether a table that an earlier version wrote lacks only what came later."""
    return isinstance(said, dict) and isinstance(written, dict) and {**written, **said} == written


def _result(directory: RunDirectory, name: str) -> None:
    """Raises UsageError unless a result can be read, holds finite figures only, and has its options beside it."""
    result = directory.result(name)
    directory.read_json(f"analyses/{name}/options.json")
    try:
        result.encode()
    except (ProbekitError, ValueError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"The result of '{name}' is damaged: {error}") from None
    if not (directory.analysis(name) / "DONE").is_file():
        raise UsageError(f"The analysis '{name}' is said to be done, and has no DONE.")


def _by_this_version(manifest: Mapping[str, Any]) -> bool:
    return bool(manifest["versions"].get("probekit") == version("probekit"))


def _report(found: Verified, directory: RunDirectory, manifest: Mapping[str, Any]) -> None:
    """Whether the report is what the pages draw, where this version wrote it."""
    if found.problems:
        return
    missing = [name for name in DRAWN if not (directory.path / name).is_file()]
    if missing:
        found.notes.append(f"{' and '.join(missing)} can be drawn again: probekit report {directory.path}")
        return
    if not _by_this_version(manifest):
        found.notes.append("Another version of probekit drew the report, so it is not drawn again to compare.")
        return
    try:
        again = drawn(directory)
        for name, content in again.items():
            if (directory.path / name).read_bytes() != content:
                found.problems.append(f"The file '{name}' is not what the run's pages draw.")
    except UsageError as error:
        found.problems.append(str(error))


# --- figures, once more ----------------------------------------------------------------------------------------------


def _recompute(found: Verified, directory: RunDirectory, manifest: Mapping[str, Any], manager: Plugins | None) -> None:
    if not _by_this_version(manifest):  # whose results have other tensors
        found.problems.append(
            "Nothing can be computed again: the run is of probekit "
            f"{manifest['versions'].get('probekit')}, and this is {version('probekit')}."
        )
        return
    # Not resolved as a run would be: the model, or a recording in place of it, may be elsewhere now.
    config = RunConfig.model_validate(read_config(directory.path / "config.toml"))
    plugins = manager or Plugins(config.block_plugins)
    try:
        classes = {name: plugins.analysis(name) for name in config.plugins}
        options = {
            name: parse_options(each.options_model, config.options.get(name, {}), name)
            for name, each in classes.items()
        }
    except ProbekitError as error:
        found.problems.append(f"Nothing can be computed again: {error}")
        return
    found.problems += [
        f"The options of '{name}' are others in config.toml than in run.json."
        for name, each in options.items()
        if each.model_dump(mode="json") != manifest["configuration"]["options"].get(name)
    ]
    results: dict[str, Result] = {}
    for name, entry in manifest["analyses"].items():
        if entry["status"] != "done":
            continue
        results[name] = directory.result(name)
        analysis = classes[name](options[name])
        try:
            with quietly(name):
                again = recompute(analysis, results[name])
        except Exception as error:  # a bug of a plugin, or tensors that do not belong together
            found.problems.append(f"The figures of '{name}' cannot be computed again: {explain(error)}")
            continue
        found.recomputed[name] = again
        found.problems += [f"{name}: {difference}." for difference in again.different]
        if again.left_out:
            found.notes.append(f"{name}: not computed again: {listed(again.left_out)}.")
        _page(found, directory, analysis, results[name])
    _joint(found, directory, manifest, classes, results)


def _page(found: Verified, directory: RunDirectory, analysis: Analysis[Any], saved: Result) -> None:
    """Whether a page is what the analysis draws of its saved result."""
    kept = directory.read_json(f"analyses/{analysis.name}/page.json")["blocks"]
    try:
        with quietly(analysis.name):
            page = draw(analysis, saved)
        for note in saved.notes:
            page.note(note)
        again = Page.from_json(page.to_json()).to_json()["blocks"]
    except Exception as error:
        found.problems.append(f"The page of '{analysis.name}' cannot be drawn again: {explain(error)}")
        return
    # What was printed is no figure, and its note tells how much of it there was.
    printed = kept and kept[-1]["type"] == "note" and PRINTED_NOTE.fullmatch(kept[-1]["text"])
    if again != kept and not (printed and again == kept[:-1]):
        found.problems.append(f"The page of '{analysis.name}' is not what the analysis draws of its saved result.")


def _joint(
    found: Verified,
    directory: RunDirectory,
    manifest: Mapping[str, Any],
    classes: Mapping[str, type[Any]],
    results: Mapping[str, Result],
) -> None:
    """Whether the pages that analyses have in common are what their results draw."""
    done = {title for title, entry in manifest.get("joint", {}).items() if entry["status"] == "done"}
    kept = {page["title"]: page for page in directory.read_json(JOINT_FILE)["pages"]} if done else {}
    for joint, group in comparable(classes, results).items():
        if joint.title not in done:
            continue
        page = Page(joint.title)
        try:
            with quietly(joint.title):
                joint.draw(group, page)
        except Exception as error:
            found.problems.append(f"The page '{joint.title}' cannot be drawn again: {explain(error)}")
        else:
            if page.to_json() != kept.get(joint.title):
                found.problems.append(f"The page '{joint.title}' is not what the saved results draw.")


# --- recordings and studies ------------------------------------------------------------------------------------------


def _recording(path: Path) -> Verified:
    from probekit.activations import Recording

    found = Verified(path, "recording")
    found.problems += [f"There is a link in it, '{link}', which no recording has." for link in links(path)]
    try:
        recording = Recording(path)
        recording.token_texts([0])
        recording.verify()
        for _ in recording.batches(recording.sites):
            pass
    except UsageError as error:
        found.problems.append(str(error))
        return found
    found.files, found.digest = len(recording.shards) + 3, recording.digest
    return found


def _study(path: Path, recompute: bool, manager: Plugins | None) -> Verified:
    found = Verified(path, "study")
    found.problems += [f"There is a link in it, '{link}', which no study has." for link in links(path)]
    cells = path / "cells"
    if found.problems or not cells.is_dir():
        return found
    known = RunDirectory(path).read_json("study.json").get("cells")
    for place in sorted(cells.iterdir()):
        if (place / "run.json").is_file() and not place.name.startswith("."):
            found.parts[place.name] = _run(place, recompute, manager)
        elif place.name.endswith(".failed.json") and place.name.removesuffix(".failed.json") not in found.parts:
            found.notes.append(f"A cell failed: {RunDirectory(cells).read_json(place.name).get('error')}")
    if isinstance(known, list):
        missing = [key for key in known if key not in found.parts and not (cells / f"{key}.failed.json").is_file()]
        others = [key for key in found.parts if key not in known]
        found.problems += [f"Of its cells these are missing: {listed(missing)}."] if missing else []
        found.notes += [f"Cells of another call, with other parameters perhaps: {listed(others)}."] if others else []
    found.notes.append("Its own report is not compared; `probekit study` judges and draws it again from these runs.")
    return found
