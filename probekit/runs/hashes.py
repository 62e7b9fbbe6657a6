"""The hashes of a run's files: `hashes.json`, written when the run is over, and what of them holds later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probekit.errors import UsageError
from probekit.files import LOCK
from probekit.runs.directory import RunDirectory, encode_json
from probekit.runs.profiling import PROFILE_FILE

HASHES_FILE = "hashes.json"
SCHEMA = 1
# Times, and what is added to: not what a run found.
WITHOUT = {HASHES_FILE, "timings.json", PROFILE_FILE, "events.jsonl", LOCK}
# What `probekit report` draws again.
DRAWN = ("report.html", "summary.md")


@dataclass
class Hashed:
    """What became of the files: which are another, missing, or not the run's; and a digest of them all."""

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    count: int = 0
    digest: str = ""


def keep_hashes(directory: RunDirectory, manifest: Mapping[str, Any]) -> None:
    """Write the hashes of all files of a run that is over, with that of the `run.json` that is about to be written."""
    files = {name: _hash(directory.path / name) for name in files_of(directory.path)}
    files["run.json"] = hashlib.sha256(encode_json(manifest)).hexdigest()
    directory.write_json(HASHES_FILE, {"schema": SCHEMA, "files": dict(sorted(files.items()))})


def drawn_again(directory: RunDirectory) -> None:
    """Put the hashes of a report that was drawn again in place of those of the one before."""
    if (directory.path / HASHES_FILE).is_file():
        files = {**read_hashes(directory), **{name: _hash(directory.path / name) for name in DRAWN}}
        directory.write_json(HASHES_FILE, {"schema": SCHEMA, "files": dict(sorted(files.items()))})


def read_hashes(directory: RunDirectory) -> dict[str, str]:
    """SHA-256 by the names of files. Raises UsageError if they are damaged, or of another schema."""
    document = directory.read_json(HASHES_FILE)
    files = document.get("files")
    if document.get("schema") != SCHEMA or not isinstance(files, dict) or not all(map(_is_hash, files.values())):
        raise UsageError(
            f"The file '{directory.path / HASHES_FILE}' is damaged: expected the hashes of the run's files."
        )
    return files


def check_hashes(directory: RunDirectory, manifest: Mapping[str, Any]) -> Hashed:
    """Compare the files of a run with their hashes. Raises UsageError as `read_hashes`, or if a file cannot be read."""
    kept = read_hashes(directory)
    there = list(files_of(directory.path))
    found = Hashed(count=len(kept), digest=digest(kept, manifest))
    found.others = [name for name in there if name not in kept]
    found.missing = [name for name in kept if name not in there]
    found.changed = [name for name in there if name in kept and _hash(directory.path / name) != kept[name]]
    return found


def digest(files: Mapping[str, str], manifest: Mapping[str, Any]) -> str:
    """One hash of what a run was asked, what it was done with and what it found, wherever it and its model are: SHA-256
    over the hashes of options, results, tensors and files, and of `run.json` over the seed, the prompts, what is known
    of the model, the versions, and what became of each analysis. Pages are drawn from these, and may show times.
    """
    found = sorted((name, value) for name, value in files.items() if _is_found(name))
    configuration = manifest["configuration"]
    asked = {key: configuration.get(key) for key in ("plugins", "prompts", "input_ids", "special_tokens", "seed")}
    spec = {key: value for key, value in configuration["model"].items() if key != "name"}
    recording = manifest.get("recording", {}).get("sha256")
    done = [spec, recording, manifest.get("model"), manifest["versions"], manifest["analyses"]]
    return hashlib.sha256(json.dumps([found, asked, done], sort_keys=True).encode()).hexdigest()


def _is_found(name: str) -> bool:
    return name.startswith("analyses/") and not name.endswith(("/page.json", "/traceback.txt"))


def files_of(folder: Path) -> Iterator[str]:
    """The names of the files that hashes are of, in order: not those that are half-written or being added to."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in WITHOUT and not (path.name.startswith(".") and path.suffix == ".tmp"):
            yield name


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"The file '{path}' cannot be read: {error.strerror}.") from None


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
