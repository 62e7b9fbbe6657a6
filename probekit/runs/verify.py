"""Whether what was saved is whole: a run, a recording, or a study, by its hashes, its schema, and its own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import ProbekitError, UsageError
from probekit.plugins import Plugins
from probekit.report import Page
from probekit.runs.config import RunConfig, grants_of, read_config, resolve
from probekit.runs.containment import quietly
from probekit.runs.directory import SCHEMA, RunDirectory, links
from probekit.runs.hashes import DRAWN, HASHES_FILE, check_hashes
from probekit.runs.joint import JOINT_FILE, comparable
from probekit.runs.keeping import PRINTED, draw, explain
from probekit.runs.manifest import read_manifest
from probekit.runs.recompute import Recomputed, listed, recompute
from probekit.runs.render import drawn, read_pages

if TYPE_CHECKING:
    from probekit.analysis import Analysis, Result
    from probekit.runs.config import Resolved


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


def _hashes(found: Verified, directory: RunDirectory, manifest: Mapping[str, Any]) -> None:
    if manifest["schema"] < SCHEMA and not (directory.path / HASHES_FILE).is_file():
        found.notes.append("The run was written before runs had hashes (probekit 0.1), so its files are not compared.")
        return
    try:
        hashed = check_hashes(directory)
    except UsageError as error:
        found.problems.append(str(error))
        return
    found.files, found.digest = hashed.count, hashed.digest
    found.problems += [f"The file '{name}' is missing." for name in hashed.missing]
    found.problems += [f"The file '{name}' is not what was written: its hash is another." for name in hashed.changed]
    if hashed.others:
        found.notes.append(f"Not of the run, and not looked at: {listed(hashed.others)}.")


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
        found.notes.append("Another version of probekit wrote the run, so its figures are not computed again.")
        return
    values = read_config(directory.path / "config.toml")
    plugins = manager or Plugins(values.get("block_plugins", []))
    try:
        resolved = resolve([("config.toml", values)], plugins, grants_of(values))  # no model is loaded
    except ProbekitError as error:
        found.problems.append(f"Nothing can be computed again: {error}")
        return
    results: dict[str, Result] = {}
    for name, entry in manifest["analyses"].items():
        if entry["status"] != "done":
            continue
        results[name] = directory.result(name)
        analysis = resolved.analyses[name](resolved.options[name])
        try:
            with quietly(name):
                again = recompute(analysis, results[name])
        except Exception as error:  # a bug of a plugin, or a result that it did not write
            found.problems.append(f"The figures of '{name}' cannot be computed again: {explain(error)}")
            continue
        found.recomputed[name] = again
        found.problems += [f"{name}: {difference}." for difference in again.different]
        if again.left_out:
            found.notes.append(f"{name}: not computed again: {listed(again.left_out)}.")
        _page(found, directory, analysis, results[name])
    _joint(found, directory, manifest, resolved, results)


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
    if kept and kept[-1].get("type") == "note" and PRINTED in str(kept[-1]):
        kept = kept[:-1]  # of this process's lines, which are no figure
    if again != kept:
        found.problems.append(f"The page of '{analysis.name}' is not what the analysis draws of its saved result.")


def _joint(
    found: Verified,
    directory: RunDirectory,
    manifest: Mapping[str, Any],
    resolved: Resolved,
    results: Mapping[str, Result],
) -> None:
    """Whether the pages that analyses have in common are what their results draw."""
    done = {title for title, entry in manifest.get("joint", {}).items() if entry["status"] == "done"}
    kept = {page["title"]: page for page in directory.read_json(JOINT_FILE)["pages"]} if done else {}
    for joint, group in comparable(resolved.analyses, results).items():
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
    for place in sorted((path / "cells").iterdir()) if (path / "cells").is_dir() else []:
        if (place / "run.json").is_file():
            found.parts[place.name] = _run(place, recompute, manager)
    if not found.parts:
        found.problems.append("The study has no runs.")
    return found
