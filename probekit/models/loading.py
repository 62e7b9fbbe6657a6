"""Loading: a model spec becomes a transformers model, its tokenizer, and what is known of where they came from.

The real loading code for every source: the hub by name, a local folder, the embedded model, or a plugin's own loader.
Every failure is one sentence that says whether the network, the name, the config or the weights are at fault.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from probekit.errors import ModelError, UsageError
from probekit.models.demo import DEMO_FOLDER
from probekit.models.spec import ModelSpec

if TYPE_CHECKING:
    from probekit.plugins import Plugins


@dataclass
class LoadedModel:
    """A model in eval mode with frozen parameters, its tokenizer if it has one, and the facts for a run's manifest."""

    model: nn.Module
    tokenizer: Any | None
    facts: dict[str, Any] = field(default_factory=dict)


def load_model(spec: ModelSpec, plugins: Plugins | None = None) -> LoadedModel:
    """Load what the spec says; a plugin's loader is asked first.

    Raises ModelError with one sentence if it cannot be loaded, UsageError if the spec contradicts itself.
    """
    _check_devices(spec)
    provided = plugins.first("probekit_load_model", spec=spec) if plugins else None
    if provided is not None:
        model, tokenizer = provided
        facts: dict[str, Any] = {"source": "plugin"}
    else:
        source = _source(spec.name)
        with _quiet_libraries(), _sentences(spec):
            config = AutoConfig.from_pretrained(
                source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
            )
            commit = getattr(config, "_commit_hash", None)
            if spec.depth is not None:
                _cut(config, spec.depth)
            tokenizer, missing_tokenizer = _load_tokenizer(source, spec)
            model = _random_model(config, spec) if spec.weights == "random" else _pretrained_model(source, config, spec)
        facts = _provenance(spec, source, commit)
        if missing_tokenizer:
            facts["tokenizer"] = missing_tokenizer
    if spec.device is not None and spec.device_map is None and spec.quantization is None:
        model = model.to(spec.device)
    model.eval()
    model.requires_grad_(False)
    facts["architecture"] = type(model).__name__
    facts["dtype"] = str(getattr(model, "dtype", None) or next(model.parameters()).dtype).removeprefix("torch.")
    device_map = getattr(model, "hf_device_map", None)
    facts["device"] = (
        {key: str(value) for key, value in device_map.items()} if device_map else str(next(model.parameters()).device)
    )
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return LoadedModel(model, tokenizer, facts)


def _source(name: str) -> str:
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


def _check_devices(spec: ModelSpec) -> None:
    if spec.device is not None and spec.device_map is not None:
        raise UsageError("Both a device and a device map are given; give one of them.")
    if spec.device is None:
        return
    try:
        device = torch.device(spec.device)
    except RuntimeError:
        raise UsageError(
            f"'{spec.device}' is not a device; expected 'cpu', 'cuda', 'cuda:0', 'mps' or the like."
        ) from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"There is no device '{spec.device}' here ({torch.cuda.device_count()} CUDA devices).")


def _dtype(name: str) -> torch.dtype | str:
    return "auto" if name == "auto" else getattr(torch, name)


def _placement(spec: ModelSpec) -> dict[str, Any]:
    """The keyword arguments of from_pretrained() for precision and placement."""
    arguments: dict[str, Any] = {"dtype": _dtype(spec.dtype)}
    if spec.quantization == "int8":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif spec.quantization:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=spec.quantization, bnb_4bit_compute_dtype=torch.float32
        )
    if spec.device_map is not None:
        arguments["device_map"] = spec.device_map
        arguments["max_memory"] = spec.max_memory
    elif spec.quantization is not None:
        arguments["device_map"] = {"": spec.device or ("cuda" if torch.cuda.is_available() else "cpu")}
    return arguments


def _pretrained_model(source: str, config: Any, spec: ModelSpec) -> nn.Module:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        output_loading_info=True,
        **_placement(spec),
    )
    model: nn.Module = loaded[0]
    _check_fit(model, loaded[1], spec)
    return model


def _check_fit(model: nn.Module, info: dict[str, Any], spec: ModelSpec) -> None:
    """transformers fills what a checkpoint lacks with random numbers; here that is an error."""
    for problem, keys in (("missing from", info["missing_keys"]), ("of another shape in", info["mismatched_keys"])):
        names = sorted(key if isinstance(key, str) else key[0] for key in keys)
        if names:
            raise ModelError(
                f"The weights of '{spec.name}' do not fit its config: {len(names)} are {problem} the checkpoint "
                f"(first: {names[0]}); give the config that was saved with these weights."
            )
    if spec.depth is None:
        lists = {
            path.rpartition(".")[2]: len(part)
            for path, part in model.named_modules()
            if isinstance(part, nn.ModuleList)
        }
        for key in sorted(info["unexpected_keys"]):
            for name, index in re.findall(r"(?:^|\.)(\w+)\.(\d+)\.", key):
                if int(index) >= lists.get(name, int(index) + 1):
                    raise ModelError(
                        f"The weights of '{spec.name}' do not fit its config: the checkpoint has {key}, but the config "
                        f"makes only {lists[name]} blocks; use --depth to leave blocks out on purpose."
                    )


def _random_model(config: Any, spec: ModelSpec) -> nn.Module:
    """Random weights of the same config, seeded, without touching the caller's random state."""
    dtype = _dtype(spec.dtype)
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.weights_seed)
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=spec.trust_remote_code
        )
    if spec.quantization is None and spec.device_map is None:
        return model
    with tempfile.TemporaryDirectory() as folder:  # the normal path quantises and places only what it loads
        model.save_pretrained(folder)  # type: ignore[operator]
        del model
        placed: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=spec.trust_remote_code, **_placement(spec)
        )
    return placed


def _cut(config: Any, depth: int) -> None:
    """Keep the first `depth` blocks of the text config, with its lists of one entry a block."""
    text = config.get_text_config(decoder=True)
    full = text.num_hidden_layers
    if depth > full:
        raise UsageError(f"A depth of {depth} blocks was asked for, but the model has {full}.")
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == full:
            setattr(text, name, value[:depth])
    text.num_hidden_layers = depth


def _load_tokenizer(source: str, spec: ModelSpec) -> tuple[Any | None, str]:
    """The tokenizer, or None with the reason: prompts then have to be given as token ids."""
    try:
        return AutoTokenizer.from_pretrained(
            source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        ), ""
    except Exception as error:  # the libraries behind the many tokenizer classes raise what they like
        if "trust_remote_code" in str(error):
            raise
        return None, f"none ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"


def _provenance(spec: ModelSpec, source: str, commit: str | None) -> dict[str, Any]:
    if spec.weights == "random":
        return {"source": "random weights", "weights_seed": spec.weights_seed, "torch": torch.__version__}
    folder = Path(source)
    if folder.is_dir():
        return {"source": "demo" if folder == DEMO_FOLDER else "folder", "weights_sha256": weights_hash(folder)}
    return {"source": "hub", "revision": commit or spec.revision}


def weights_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's weight files, in order of name."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Without the libraries' own bars and warnings while loading: what matters of them becomes an error here."""
    quantizer = logging.getLogger("bitsandbytes")  # warns, on every CPU, of kernels that would have to be downloaded
    level = quantizer.level
    quantizer.setLevel(logging.ERROR)
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        quantizer.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _sentences(spec: ModelSpec) -> Iterator[None]:
    """Turn what the libraries raise while loading into one sentence each."""
    try:
        yield
    except (ModelError, UsageError, KeyboardInterrupt):
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"Out of memory while loading '{spec.name}'; try --quantization int8, --dtype bfloat16, --device-map auto "
            "or --depth."
        ) from error
    except Exception as error:
        raise ModelError(_explain(spec, error)) from error


def _explain(spec: ModelSpec, error: Exception) -> str:
    name = spec.name
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(part, kinds) for part in causes)

    text = " ".join(str(part) for part in causes)
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "trust_remote_code" in text:
        return f"'{name}' comes with its own model code, which is not run unless you allow it with --trust-remote-code."
    if caused_by(GatedRepoError):
        return f"'{name}' is a gated repository; ask for access on its page and log in with `hf auth login`."
    if caused_by(RevisionNotFoundError):
        return f"'{name}' has no revision '{spec.revision}' on the hub."
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
        return f"'{name}' has a config but no weights that can be loaded; use --weights random for untrained ones."
    if "Unrecognized configuration class" in text or "does not recognize this architecture" in text:
        return f"'{name}' is not a causal language model that this version of transformers knows: {first_line}"
    if isinstance(error, RuntimeError) and ("size mismatch" in text or "mismatch" in text):
        return f"The weights of '{name}' do not fit its config: {first_line}"
    return f"'{name}' could not be loaded: {type(error).__name__}: {first_line}"


def _offline() -> bool:
    return any(
        os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
