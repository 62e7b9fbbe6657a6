"""Loading: a model spec becomes a transformers model, its tokenizer, and what is known of where they came from.

The real loading code for every source: the hub by name, a local folder, the embedded model, or a plugin's own loader.
Every failure is one sentence that says whether the network, the name, the config or the weights are at fault.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from probekit.errors import ModelError, UsageError
from probekit.models.demo import DEMO_FOLDER
from probekit.models.failures import first_words, in_sentences, quiet_libraries
from probekit.models.quantization import check_reading_back, keep_quantized_weights, quantization_config
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
    provided = provided_model(spec, plugins)
    if provided is not None:
        return provided
    source = find_source(spec.name)
    with quiet_libraries(), in_sentences(spec):
        config = read_config(source, spec)
        tokenizer, missing_tokenizer = load_tokenizer(source, spec)
        model = _random_model(config, spec) if spec.weights == "random" else _pretrained_model(source, config, spec)
    facts = _provenance(spec, source)
    if missing_tokenizer:
        facts["tokenizer"] = missing_tokenizer
    return _settled(model, tokenizer, facts, spec)


def provided_model(spec: ModelSpec, plugins: Plugins | None) -> LoadedModel | None:
    """The model that a plugin's own loader makes of the spec, or None if no plugin takes it for one of its own.

    Raises what the loader raises, and UsageError if the spec contradicts itself.
    """
    check_devices(spec)
    provided = plugins.first("probekit_load_model", spec=spec) if plugins else None
    if provided is None:
        return None
    model, tokenizer = provided
    facts: dict[str, Any] = {"source": "plugin", "weights_sha256": state_hash(model)}
    if tokenizer is None:
        facts["tokenizer"] = "none (the plugin that loads the model gives none)"
    return _settled(model, tokenizer, facts, spec)


def _settled(model: nn.Module, tokenizer: Any | None, facts: dict[str, Any], spec: ModelSpec) -> LoadedModel:
    """The model on its device, in eval mode and frozen, with the facts that only it can tell."""
    if spec.device is not None and spec.device_map is None and spec.quantization is None:
        model = model.to(spec.device)
    model.eval()
    model.requires_grad_(False)
    keep_quantized_weights(model)
    if spec.quantization in ("nf4", "fp4"):
        check_reading_back(model, spec)
    facts["architecture"] = type(model).__name__
    facts["dtype"] = str(getattr(model, "dtype", None) or next(model.parameters()).dtype).removeprefix("torch.")
    device_map = getattr(model, "hf_device_map", None)
    facts["device"] = (
        {key: str(value) for key, value in device_map.items()} if device_map else str(next(model.parameters()).device)
    )
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return LoadedModel(model, tokenizer, facts)


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


def read_config(source: str, spec: ModelSpec) -> Any:
    """The config behind a source, with the first blocks only where the spec says so."""
    config = AutoConfig.from_pretrained(source, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    if spec.depth is not None:
        _cut(config, spec.depth)
    return config


def check_devices(spec: ModelSpec) -> None:
    """Raise UsageError where the spec names devices that are not there, or that contradict each other."""
    if spec.device is not None and spec.device_map is not None:
        raise UsageError("Both a device and a device map are given; give one of them.")
    if spec.max_memory is not None and spec.device_map is None:
        raise UsageError("The memory of each device is given, but no device map that shards; add --device-map auto.")
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
    if spec.quantization is not None:
        arguments["quantization_config"] = quantization_config(spec.quantization)
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
        torch.default_generator.manual_seed(spec.weights_seed)  # not torch's own: that would seed every device
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


def load_tokenizer(source: str, spec: ModelSpec) -> tuple[Any | None, str]:
    """The tokenizer, or None with the reason: prompts then have to be given as token ids."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one of no files
            return None, "none (it comes with no tokenizer files)"
        return tokenizer, ""
    except Exception as error:  # the libraries behind the many tokenizer classes raise what they like
        if "trust_remote_code" in str(error):
            raise
        return None, f"none ({type(error).__name__}: {first_words(error)})"


def _provenance(spec: ModelSpec, source: str) -> dict[str, Any]:
    if spec.weights == "random":
        return {"source": "random weights", "weights_seed": spec.weights_seed, "torch": torch.__version__}
    folder = Path(source)
    if folder.is_dir():
        return {"source": "demo" if folder == DEMO_FOLDER else "folder", "weights_sha256": weights_hash(folder)}
    return {"source": "hub", "revision": commit(source, spec.revision)}


def commit(source: str, revision: str | None) -> str | None:
    """The commit on the hub that a revision stands for, as far as the cache knows it."""
    # transformers does not say which commit it took, but what it took is in the cache now, in a folder named by it.
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else revision


def weights_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's weight files, in order of name."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def state_hash(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's state, in its own order.

    What is not there, because it is offloaded, counts by its name, type and shape.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):  # a module may keep in its state what it likes
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
