"""Sources: what a model's name stands for, its tokenizer, and how its weights are told from others."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from probekit import cache
from probekit.errors import ModelError
from probekit.models.declared_sizes import counting_modules
from probekit.models.demo import DEMO_FOLDER
from probekit.models.failures import first_words
from probekit.models.spec import ModelSpec
from probekit.models.trust import Given

# What tokenizers are made of, and how many tokens a model's class gives one that is made of no file, beside special
# ones: the space and a language.
_OF_TOKENS = ("tokenizer.json", "vocab*", "merges.txt", "*.model", "*.spm", "tekken.json", "*.tiktoken", "dict.txt")
_OF_NOTHING = 2
# A file that is not loaded, such as weights saved in another way, counts for the hash of weights up to so many times
# the size of those that are.
BESIDE = 4
# The hashes of files of more bytes, unchanged for so many seconds, are kept: hashing 6 GB takes 4 s.
LARGE, SETTLED = 1 << 26, 2


def find_source(name: str) -> str:
    """The folder or hub name behind a model name. Raises ModelError if it can be neither."""
    if name == "demo":
        return str(DEMO_FOLDER)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"The folder '{name}' has no config.json; expected a model folder as save_pretrained() writes it."
            )
        return str(path)
    if path.is_file():
        raise ModelError(f"'{name}' is a file; expected a model folder as save_pretrained() writes it, or a hub name.")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no folder '{name}'; give a model folder, a name on the hub, or 'demo'.")
    return name


def on_meta(config: Any, spec: ModelSpec, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a config without weights: its tensors have shapes and no values."""
    precision = {} if dtype is None else {"dtype": dtype}
    with torch.device("meta"), counting_modules(spec.name):
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, trust_remote_code=spec.trust_remote_code, **precision
        )
    return model


def load_tokenizer(given: Given) -> tuple[Any | None, str]:
    """The tokenizer, or None with the reason: prompts then have to be given as token ids."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(given.source, **given.files)
        folder = Path(given.source)
        made_of_nothing = folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _OF_TOKENS)
        if len(tokenizer) <= len(tokenizer.all_special_tokens) + (_OF_NOTHING if made_of_nothing else 0):
            return None, "none (it comes with no tokenizer files)"
        return tokenizer, ""
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the libraries behind raise what they like; a panic of Rust is no Exception
        if "trust_remote_code" in str(error):
            raise
        return None, f"none ({type(error).__name__}: {first_words(error)})"


def commit(source: str, revision: str | None) -> str | None:
    """The commit on the hub that a revision stands for, as far as the cache knows it."""
    # transformers does not say which commit it took, but what it took is in the cache now, in a folder named by it.
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else revision


def weights_hash(folder: Path, loaded: Sequence[Path] = ()) -> str:
    """SHA-256 over the names and contents of a folder's weight files, in order of name.

    Where it is known which of them are `loaded`, others count only if they are not far larger.
    """
    digest = hashlib.sha256()
    most = BESIDE * sum(path.stat().st_size for path in loaded) if loaded else math.inf
    beside = [path for path in (*folder.glob("*.safetensors"), *folder.glob("*.bin")) if path.is_file()]
    files = sorted({*loaded, *(path for path in beside if path.stat().st_size <= most)})
    with ThreadPoolExecutor(max_workers=4) as pool:
        for path, found in zip(files, pool.map(_file_hash, files), strict=True):
            digest.update(path.name.encode())
            digest.update(found)
    return digest.hexdigest()


def _file_hash(path: Path) -> bytes:
    """SHA-256 of a file. That of a large one is kept until the file is another, or was written anew."""
    state = path.stat()
    known = f"{path.resolve()} {state.st_ino} {state.st_size} {state.st_mtime_ns}"
    name = f"weights-{hashlib.sha256(known.encode()).hexdigest()[:32]}"
    settled = state.st_size > LARGE and time.time() - state.st_mtime > SETTLED
    kept = cache.read(name) if settled else None
    if kept is not None and len(kept) == hashlib.sha256().digest_size:
        return kept
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if settled:
        cache.write(name, found)
    return found
