"""Loading: a model spec becomes a transformers model, its tokenizer, and what is known of where they came from.

The real loading code for every source: the hub by name, a local folder, the embedded model, or a plugin's own loader.
Every failure is one sentence that says whether the network, the name, the config or the weights are at fault.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.quantizers.auto import AutoHfQuantizer

from probekit.errors import ModelError, UsageError
from probekit.models.declared_sizes import check_against_files, check_memory
from probekit.models.demo import DEMO_FOLDER
from probekit.models.depth import cut
from probekit.models.devices import as_device, execution_device, is_dispatched, is_offloaded, offloading
from probekit.models.failures import in_sentences, quiet_libraries
from probekit.models.folders import clipped
from probekit.models.heap import giving_back_large
from probekit.models.placement import Placement, by_bitsandbytes, check_devices, limits, placement
from probekit.models.provided import ask
from probekit.models.quantization import (
    check_already_quantised,
    check_quantised,
    check_reading_back,
    keep_quantised_weights,
    numbers,
    quantised_as,
    quantised_layers,
    quantised_share,
    quantization_config,
    without_quantization,
)
from probekit.models.sources import commit, find_source, load_tokenizer, on_meta, weights_hash
from probekit.models.spec import ModelSpec
from probekit.models.trust import Given, reading_model

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
    with quiet_libraries(), in_sentences(spec), reading_model(source, spec) as given:
        config = cut(given.config, spec)
        tokenizer, missing_tokenizer = load_tokenizer(given)
        if spec.weights == "random":
            model = _random_model(config, spec)
        else:
            _check_files(given, config)
            model = _pretrained_model(source, config, spec, given.weights())
    facts = _provenance(spec, source, given)
    if missing_tokenizer:
        facts["tokenizer"] = missing_tokenizer
    return _settled(model, tokenizer, facts, spec)


def provided_model(spec: ModelSpec, plugins: Plugins | None) -> LoadedModel | None:
    """The model that a plugin's own loader makes of the spec, or None if no plugin takes it for one of its own.

    Raises what the loader raises, PluginError if it returns something else than the hook asks for, and UsageError if
    the spec contradicts itself.
    """
    check_devices(spec)
    provided = ask(spec, plugins) if plugins else None
    if provided is None:
        return None
    model, tokenizer, given = provided
    if spec.device is not None and execution_device(model) != as_device(spec.device):
        if is_dispatched(model) or quantised_layers(model):
            raise UsageError(
                f"'{spec.name}' is placed by the plugin that loads it, and must not be moved; leave --device out."
            )
        model = model.to(spec.device)
    facts = {"source": "plugin", **given}
    if "weights_sha256" not in facts:
        facts["weights_sha256"] = state_hash(model)
    if tokenizer is None:
        facts.setdefault("tokenizer", "none (the plugin that loads the model gives none)")
    return _settled(model, tokenizer, facts, spec)


def _settled(model: nn.Module, tokenizer: Any | None, facts: dict[str, Any], spec: ModelSpec) -> LoadedModel:
    """The model in eval mode and frozen, with the facts that only it can tell."""
    model.eval()
    model.requires_grad_(False)
    keep_quantised_weights(model)
    if spec.quantization is not None:
        check_quantised(model, spec, by_plugin=facts["source"] == "plugin")
    if layers := quantised_layers(model):
        check_reading_back(model, spec)
        facts["quantization"] = layers
        facts["quantised_share"] = round(quantised_share(model), 4)
    facts["architecture"] = type(model).__name__
    facts["dtype"] = str(getattr(model, "dtype", None) or next(model.parameters()).dtype).removeprefix("torch.")
    device_map = getattr(model, "hf_device_map", None)
    facts["device"] = (
        {key: str(value) for key, value in device_map.items()} if device_map else str(execution_device(model))
    )
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # offloading takes these apart
    kept = [part for name, part in model.named_parameters() if not (part.is_meta and name in tied)]
    facts["parameters"] = sum(map(numbers, kept))
    return LoadedModel(model, tokenizer, facts)


def _dtype(name: str) -> torch.dtype | str:
    return "auto" if name == "auto" else getattr(torch, name)


def _check_files(given: Given, config: Any) -> None:
    """Raise ModelError unless a folder's files can be the weights of a config.

    Those of the hub are not here yet, and the embedded model is known.
    """
    if Path(given.source) == DEMO_FOLDER:
        return
    if files := given.weight_files():
        with no_init_weights():  # of one type: a config may give each of its parts its own
            skeleton = on_meta(without_quantization(config), given.spec, torch.float32)
        check_against_files(skeleton, files, given.spec.name, plain=quantised_as(config) is None)


def _pretrained_model(source: str, config: Any, spec: ModelSpec, given: dict[str, Any]) -> nn.Module:
    already = quantised_as(config)
    if already and spec.quantization not in (None, already):
        raise UsageError(
            f"The weights of '{spec.name}' are quantised already ({already}), and cannot be quantised as "
            f"{spec.quantization}; leave --quantization out."
        )
    if already and spec.dtype != "auto":
        raise UsageError(
            f"The weights of '{spec.name}' are quantised already ({already}), and the others keep the precision in "
            "which they were saved; leave --dtype out."
        )
    precision = getattr(config, "dtype", None) if spec.dtype == "auto" else _dtype(spec.dtype)
    if spec.quantization in ("nf4", "fp4") and precision == torch.float64:
        raise UsageError(
            f"bitsandbytes makes {spec.quantization} weights from float32, bfloat16 or float16, not from float64; "
            "add --dtype float32."
        )
    with ExitStack() as kept:
        # For what goes to disk and is not in the checkpoint.
        folder = kept.enter_context(_temporary_folder()) if spec.device_map is not None else ""
        arguments, placed = _arguments(config, spec, already, folder)
        with giving_back_large() if spec.quantization is not None else nullcontext():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                output_loading_info=True,
                **given,
                **arguments,
            )
        model: nn.Module = loaded[0]
        _check_fit(model, loaded[1], spec)
        if already:
            check_already_quantised(model, already, spec)
        if placed is not None:
            _spread_out(model, placed, folder)
        if is_offloaded(model):
            weakref.finalize(model, kept.pop_all().close)
    return model


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="probekit-")
    except OSError as error:
        raise ModelError(
            f"What does not stay in memory needs a temporary folder, and none can be made ({error.strerror}); "
            "name a place for it in TMPDIR."
        ) from error


def _arguments(
    config: Any, spec: ModelSpec, already: str | None, folder: str
) -> tuple[dict[str, Any], Placement | None]:
    """What from_pretrained() takes for precision and placement, and where its parts go where that is done here."""
    arguments: dict[str, Any] = {"dtype": _dtype(spec.dtype)}
    if spec.quantization is not None and not already:
        arguments["quantization_config"] = quantization_config(spec.quantization)
    if spec.device_map is None:
        if spec.device is not None:
            arguments["device_map"] = {"": spec.device}
        elif spec.quantization is not None or already:
            arguments["device_map"] = {"": "cuda" if torch.cuda.is_available() else "cpu"}
        return arguments, None
    if by_bitsandbytes(config, spec) is None:
        if isinstance(spec.device_map, dict):
            placement(on_meta(config, spec), spec)  # which checks it
        by_transformers = {"device_map": spec.device_map, "max_memory": limits(spec), "offload_folder": folder}
        return arguments | by_transformers, None
    dtype = None if spec.dtype == "auto" else getattr(torch, spec.dtype)
    found = placement(on_meta(config, spec, dtype), spec)
    if not found.offloads():
        return arguments | {"device_map": found.device_map}, None
    # transformers would keep what is not on the devices that compute in fp32, or refuse the map.
    if not already:
        from probekit.models.spilling import SpillingConfig  # imports bitsandbytes

        plain = arguments["quantization_config"]
        arguments["quantization_config"] = SpillingConfig(plain, found.device_map, folder)
    return arguments | {"device_map": {"": "cpu"}}, found


def _spread_out(model: Any, placed: Placement, folder: str) -> None:
    from probekit.models.spilling import SpillingConfig, spill
    from probekit.models.streaming import spread

    spill(model, placed.device_map, folder)
    spread(model, placed.device_map)
    used = model.config.quantization_config
    if isinstance(used, SpillingConfig):  # from here on a model like any other that is quantised
        model.config.quantization_config = used.plain
        model.hf_quantizer = AutoHfQuantizer.from_config(used.plain, pre_quantized=False)
        model.quantization_method = used.plain.quant_method


def _check_fit(model: nn.Module, info: dict[str, Any], spec: ModelSpec) -> None:
    """transformers fills what a checkpoint lacks with random numbers; here that is an error."""
    for problem, keys in (("missing from", info["missing_keys"]), ("of another shape in", info["mismatched_keys"])):
        names = sorted(key if isinstance(key, str) else key[0] for key in keys)
        if names:
            raise ModelError(
                f"The weights of '{spec.name}' do not fit its config: {len(names)} are {problem} the checkpoint "
                f"(first: {clipped(names[0])}); give the config that was saved with these weights."
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
                        f"The weights of '{spec.name}' do not fit its config: the checkpoint has {clipped(key)}, but "
                        f"the config makes only {lists[name]} blocks; use --depth to leave blocks out on purpose."
                    )


def _random_model(config: Any, spec: ModelSpec) -> nn.Module:
    """Random weights of the same config, seeded, without touching the caller's random state."""
    config = without_quantization(config)
    dtype: Any = _dtype(spec.dtype)
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
    with no_init_weights():
        check_memory(on_meta(copy.deepcopy(config), spec), dtype.itemsize, spec.name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.weights_seed)  # not torch's own: that would seed every device
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=spec.trust_remote_code
        )
    if spec.quantization is None and spec.device_map is None:
        return model if spec.device is None else model.to(spec.device)
    with ExitStack() as kept:
        # The normal path quantises and places only what it loads.
        folder = kept.enter_context(_temporary_folder())
        model.save_pretrained(folder)  # type: ignore[operator]
        del model
        given = {"trust_remote_code": spec.trust_remote_code, "local_files_only": True, "use_safetensors": True}
        placed = _pretrained_model(folder, config, spec, given)
        if is_offloaded(placed):
            weakref.finalize(placed, kept.pop_all().close)
    return placed


def _provenance(spec: ModelSpec, source: str, given: Given) -> dict[str, Any]:
    if spec.weights == "random":
        return {"source": "random weights", "weights_seed": spec.weights_seed, "torch": torch.__version__}
    folder = Path(source)
    if folder.is_dir():
        kind = "demo" if folder == DEMO_FOLDER else "folder"
        return {"source": kind, "weights_sha256": weights_hash(folder, given.weight_files())}
    return {"source": "hub", "revision": commit(source, spec.revision)}


def state_hash(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's state, in its own order.

    What is offloaded is fetched; what is nowhere counts by its name, type and shape.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):  # a module may keep in its state what it likes
            continue
        path, _, own = name.rpartition(".")
        hook = offloading(model.get_submodule(path)) if value.is_meta else None
        if hook is not None and own in hook.weights_map:
            value = hook.weights_map[own]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
