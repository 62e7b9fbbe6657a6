"""What goes wrong while a model loads, as one sentence: network, name, config, weights or memory."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from probekit.errors import ModelError, UsageError, out_of_memory, size
from probekit.models.folders import PICKLED, SAFE, SAFE_INDEX, clipped, no_weights_sentence, pickle_sentence
from probekit.models.spec import ModelSpec

_estimating = ContextVar("estimating", default=False)


class DiskFull(BaseException):
    """Raised while transformers converts weights, which makes one error without a cause of any Exception there."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the libraries' own bars and warnings while loading: what matters of them becomes an error here."""
    # One warns, on every CPU, of kernels that would have to be downloaded; the other of offloading, as asked for.
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def in_sentences(spec: ModelSpec) -> Iterator[None]:
    """Turn what the libraries raise while loading into one sentence each."""
    try:
        yield
    except (ModelError, UsageError, KeyboardInterrupt):
        raise
    except (Exception, DiskFull) as error:
        # What cleans up after an interrupt in transformers may fail over what that left.
        if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error)):
            raise KeyboardInterrupt from None
        raise ModelError(_explain(spec, error)) from error


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what it came from, what that came from, and so on."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def _explain(spec: ModelSpec, error: BaseException) -> str:
    name, causes = spec.name, _causes(error)
    if any(out_of_memory(part) for part in causes):
        return _out_of_memory(spec, causes)

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(part, kinds) for part in causes)

    text = " ".join(str(part) for part in causes)
    first_line = first_words(error)
    if caused_by(DiskFull) or "No space left" in text:
        return (
            f"The disk is full: '{name}' needs a temporary folder for what does not stay in memory; name a larger "
            "place for it in TMPDIR."
        )
    if "trust_remote_code" in text:
        return f"'{name}' comes with its own model code, which is not run unless you allow it with --trust-remote-code."
    if spec.weights == "pretrained" and not spec.allow_pickle and _pickled_in_cache(spec):
        return pickle_sentence(name)
    if caused_by(GatedRepoError):
        return f"'{name}' is a gated repository; ask for access on its page and log in with `hf auth login`."
    if caused_by(RevisionNotFoundError):
        return f"'{name}' has no revision '{spec.revision}' on the hub."
    missing = (RepositoryNotFoundError, HFValidationError, OfflineModeIsEnabled, LocalEntryNotFoundError)
    if Path(name).expanduser().is_dir() and caused_by(*missing):
        return (
            f"The folder '{name}' names code or files of another repository, which is not in the hub's cache, and a "
            "folder is read without the network; have it there first (`hf download OWNER/NAME`)."
        )
    if caused_by(RepositoryNotFoundError, HFValidationError):
        return f"There is no model '{name}': it is no folder here, and the hub has no repository of that name."
    if caused_by(OfflineModeIsEnabled) or (caused_by(LocalEntryNotFoundError) and _offline()):
        return f"'{name}' is no folder here and not in the hub's cache, and the hub is switched off (HF_HUB_OFFLINE)."
    if caused_by(LocalEntryNotFoundError, ConnectionError, TimeoutError) or "couldn't connect" in text.lower():
        return (
            f"'{name}' is no folder here and not in the hub's cache, and the hub cannot be reached: check the network."
        )
    if caused_by(SafetensorError):
        return f"The weights of '{name}' cannot be read (damaged or incomplete file): {first_line}"
    if "no file named" in text or "does not appear to have a file" in text:
        return no_weights_sentence(name)
    if "Unrecognized configuration class" in text or "does not recognize this architecture" in text:
        return f"'{name}' is not a causal language model that this version of transformers knows: {first_line}"
    if "ignore_mismatched_sizes" in text:  # which announces a table that is not printed here
        return (
            f"The weights of '{name}' do not fit its config: some have another shape than it says; give the config "
            "that was saved with these weights."
        )
    if "Storage size calculation overflowed" in text:
        return f"The config of '{name}' asks for more numbers than any memory holds: {first_line}"
    if isinstance(error, RuntimeError) and ("size mismatch" in text or "mismatch" in text):
        return f"The weights of '{name}' do not fit its config: {first_line}"
    return f"'{name}' could not be loaded: {type(error).__name__}: {first_line}"


def _out_of_memory(spec: ModelSpec, causes: Sequence[BaseException]) -> str:
    """What the weights take in each precision, where that can be told."""
    for cause in causes:  # what was loaded already is no longer needed
        traceback.clear_frames(cause.__traceback__)
    clear_device_cache(garbage_collection=True)
    begin = f"Out of memory while loading '{spec.name}'"
    plain = f"{begin}; try --quantization int8, --dtype bfloat16, --device-map auto or --depth."
    if _estimating.get():  # the skeleton itself does not fit
        return plain
    token = _estimating.set(True)
    try:
        needed, ways = _sizes(spec)
    except Exception:  # an estimate is a help, and not worth another failure
        return plain
    finally:
        _estimating.reset(token)
    if spec.device_map is None:
        ways.append("--device-map auto spreads them over devices, CPU and disk")
    return f"{begin}: its weights take about {needed}; {', '.join([*ways, '--depth loads the first blocks only'])}."


def _sizes(spec: ModelSpec) -> tuple[str, list[str]]:
    """The weights' size as they were to be loaded, and the options that make them smaller, each with its size."""
    from probekit.models.skeleton import skeleton

    model: Any = skeleton(spec).model
    parameters = list(model.parameters())
    head = model.get_output_embeddings()
    layers = [part for part in model.modules() if isinstance(part, nn.Linear | Conv1D) and part is not head]
    count, linear = sum(each.numel() for each in parameters), sum(layer.weight.numel() for layer in layers)
    here = sum(each.nbytes for each in parameters)
    rest = here / count * (count - linear)
    sizes = {"int8": rest + linear, "nf4": rest + linear / 2, "fp4": rest + linear / 2}
    if spec.quantization is not None:
        here = round(sizes[spec.quantization])
        found = {"--quantization nf4": sizes["nf4"]}
    else:
        found = {"--dtype bfloat16": 2 * count, **{f"--quantization {name}": sizes[name] for name in ("int8", "nf4")}}
    return size(here), [f"{option} takes {size(bytes_)}" for option, bytes_ in found.items() if bytes_ < 0.95 * here]


def first_words(error: BaseException) -> str:
    """The first line of what an error says, with the second where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return clipped(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))


def _pickled_in_cache(spec: ModelSpec) -> bool:
    """Whether the hub's cache has the weights of a model that is no folder, and has them pickled only."""

    def cached(file: str) -> bool:
        try:
            return isinstance(try_to_load_from_cache(spec.name, file, revision=spec.revision), str)
        except HFValidationError:
            return False

    if Path(spec.name).is_dir():
        return False
    return any(map(cached, PICKLED)) and not any(map(cached, (SAFE, SAFE_INDEX)))


def _offline() -> bool:
    return any(
        os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
