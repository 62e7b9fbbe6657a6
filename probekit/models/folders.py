"""Folders of models from elsewhere: what is in one is checked before any library reads it.

A folder is data. It cannot make this process read pickle, follow a name out of the folder, wait for a pipe, or load
another model in its place; what would is refused in one sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import safe_open

from probekit.errors import ModelError, quoted, size

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"

# Characters of what a file or a library says that a sentence repeats.
LONGEST_WORDS = 300
# What is read into memory as a whole: a tokenizer of a million tokens is some 30 MB of JSON.
LONGEST = 1 << 28
_WHOLE = (".json", ".txt", ".jinja", ".model", ".spm", ".tiktoken", ".vocab", ".bpe")
# What the libraries open in a model's folder, where a person may keep other things beside it.
_OPENED = (
    *("config*.json", "generation_config.json", "*processor_config.json", ADAPTER, "chat_template*", "*.jinja"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "tekken.json"),
    *("*.model", "*.spm", "*.tiktoken", "*.vocab", "*.bpe", "bpe.codes", "dict.txt"),
    *("*.safetensors*", "pytorch_model*", "*.py"),
)
# What is read as a whole, and has to be an object.
_DOCUMENTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
# As `save_pretrained(distributed)` of transformers names its files, which are read by torch's own way for them.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def check_folder(folder: Path, name: str) -> None:
    """Raise ModelError with one sentence unless what is in a model's folder can be read as data."""
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja")]):
        if not any(map(path.match, _OPENED)) or path.is_dir():
            continue
        if not path.is_file():  # a pipe would be waited for, a device never end
            what = "leads nowhere" if path.is_symlink() and not path.exists() else "is neither a file nor a folder"
            raise ModelError(f"{short(path.name)} in the folder of '{name}' {what}; put the file there, or remove it.")
        if path.suffix in _WHOLE and path.stat().st_size > LONGEST:
            raise ModelError(
                f"{short(path.name)} in the folder of '{name}' has {size(path.stat().st_size)}; expected "
                f"{size(LONGEST)} at most of a file that is read as a whole."
            )
        if _DISTRIBUTED.fullmatch(path.name):
            raise ModelError(
                f"'{name}' is a distributed checkpoint ({path.name}); save it as one model, with save_pretrained()."
            )
    if (folder / ADAPTER).exists():
        raise ModelError(adapter_sentence(name))
    for document in _DOCUMENTS:
        if (folder / document).is_file():
            read_object(folder / document, name)


def clipped(text: str, longest: int = LONGEST_WORDS) -> str:
    """The begin of a text that may be of any length."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def short(value: object) -> str:
    """A value from a file as a sentence quotes it."""
    return clipped(quoted(value))


def adapter_sentence(name: str) -> str:
    """What to do about weights that are to be changed by others, of a model that a file names."""
    return (
        f"'{name}' comes with a PEFT adapter ({ADAPTER}), which changes the weights of a model that this file names; "
        f"take {ADAPTER} away if the weights here are merged already, or else merge it into its model with "
        "merge_and_unload() and save that."
    )


def pickle_sentence(name: str) -> str:
    """Why weights are not read, and what to do."""
    return (
        f"The weights of '{name}' are pickled (pytorch_model.bin), and pickle can run code when it is read; convert "
        "them to safetensors with save_pretrained(), or say --allow-pickle if you trust who made them."
    )


def no_weights_sentence(name: str) -> str:
    """What to do without weights."""
    return f"'{name}' has a config but no weights that can be loaded; use --weights random for untrained ones."


def read_object(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError if it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"'{path.name}' of '{name}' is not text in UTF-8; it is damaged, or no JSON file.") from None
    except RecursionError:
        raise ModelError(f"'{path.name}' of '{name}' is nested too deeply to be read.") from None
    except ValueError as error:
        raise ModelError(f"'{path.name}' of '{name}' is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ModelError(f"'{path.name}' of '{name}' holds a {type(found).__name__}; expected a JSON object.")
    return found


def weights_named(config: Any, name: str, allow_pickle: bool) -> str | None:
    """The file that a config names in place of the usual ones, if any. Raises ModelError unless it is a safetensors
    file: any other would be unpickled.
    """
    said = getattr(config, "transformers_weights", None)
    if said is None or (allow_pickle and isinstance(said, str)):
        return said
    if not isinstance(said, str) or not _is_below(said) or not said.endswith((SAFE[5:], SAFE_INDEX[5:])):
        raise ModelError(
            f"The config of '{name}' names {short(said)} as its weights; expected a safetensors file beside it."
        )
    return said


def weight_files(folder: Path, name: str, allow_pickle: bool, said: str | None = None) -> list[Path]:
    """The safetensors files with a model's weights, in order of name; none if they are pickled, which then is allowed.

    `said` is the file that a config names instead of the usual ones. Raises ModelError with one sentence if there are
    no weights, if they are pickled, or if an index names something that is not a safetensors file of this folder.
    """
    chosen = folder / (said or (SAFE if (folder / SAFE).is_file() else SAFE_INDEX))
    if chosen.is_file():
        if chosen.suffix == ".json":
            return [folder / part for part in _shards(chosen, name)]
        return [chosen] if chosen.suffix == ".safetensors" else []
    if any((folder / pickled).exists() for pickled in PICKLED):
        if not allow_pickle:
            raise ModelError(pickle_sentence(name))
        if (folder / PICKLED[1]).is_file() and not (folder / PICKLED[0]).is_file():
            _shards(folder / PICKLED[1], name, ending=".bin")
        return []
    raise ModelError(no_weights_sentence(name))


def _shards(index: Path, name: str, ending: str = ".safetensors") -> list[str]:
    """The files that an index names: each below its own folder, and there."""
    document = read_object(index, name)
    parts = document.get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()) or not parts:
        raise ModelError(
            f"'{index.name}' of '{name}' has no weight_map from names of weights to files; get the file again."
        )
    if not isinstance(document.get("metadata"), dict):
        raise ModelError(f"'{index.name}' of '{name}' has no metadata; get the file again.")
    names = sorted(set(parts.values()))
    for part in names:
        if not _is_below(part) or not part.endswith(ending):
            raise ModelError(
                f"'{index.name}' of '{name}' names the file {short(part)}; expected {ending.strip('.')} files of its "
                "own folder."
            )
        if not (index.parent / part).is_file():
            raise ModelError(
                f"The weights of '{name}' are not complete: {short(part)}, which '{index.name}' names, is missing."
            )
    return names


def _is_below(part: str) -> bool:
    """Whether a name that a file gives stays in that file's folder."""
    path = PurePosixPath(part)
    return not (path.is_absolute() or ".." in path.parts or "\\" in part or "\0" in part)


def headers(files: list[Path]) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of every tensor in safetensors files, by their headers, which safetensors checks against the
    files' sizes. Raises SafetensorError for a damaged one.
    """
    for path in files:
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                part = weights.get_slice(key)
                yield key, part.get_dtype(), part.get_shape()
