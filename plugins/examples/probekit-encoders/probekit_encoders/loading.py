"""From a model spec to an encoder in transformers, its tokenizer, and where its weights came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from probekit import ModelError, ModelSpec, UsageError, reading_model


def load_encoder(name: str, spec: ModelSpec) -> tuple[PreTrainedModel, Any | None, dict[str, Any]]:
    """The encoder in the folder or hub repository `name`, its tokenizer or None, and the facts for a run's manifest.

    probekit itself puts it on `spec.device`, in eval mode and frozen. Raises UsageError for what an encoder is not
    loaded with, ModelError if it cannot be loaded: one sentence each.
    """
    _check(name, spec)
    with _quiet():
        try:
            source = _source(name)
            return *_load(source, spec), _facts(source, spec)
        except ModelError:
            raise
        except Exception as error:  # the libraries behind the many model classes raise what they like
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if "trust_remote_code" in str(error):
                reason = "it comes with model code of its own, which runs only with --trust-remote-code."
            raise ModelError(f"The encoder '{name}' could not be loaded: {reason}") from error


def _check(name: str, spec: ModelSpec) -> None:
    """Refuse what would otherwise be passed over in silence."""
    if not name:
        raise UsageError("'encoder:' names no model; expected encoder:FOLDER or encoder:NAME, a name on the hub.")
    if spec.depth is not None:
        raise UsageError("An encoder is loaded whole; leave out --depth: nothing past the site of an analysis runs.")
    if spec.weights == "random" and (spec.quantization or spec.device_map):
        raise UsageError(
            "The random weights of an encoder are made in one precision on one device; "
            "leave out --quantization and --device-map."
        )


def _source(name: str) -> str:
    """The folder or hub name as transformers wants it."""
    folder = Path(name).expanduser()
    if folder.is_absolute() and not folder.is_dir():
        raise ModelError(f"There is no folder '{name}'; expected encoder:FOLDER or encoder:NAME, a name on the hub.")
    return folder.as_posix()


def _load(source: str, spec: ModelSpec) -> tuple[PreTrainedModel, Any | None]:
    with reading_model(source, spec) as given:  # as far as it is trusted; a folder without the network
        return _made(source, spec, given.config, given.weights), _tokenizer(source, given.files)


def _made(source: str, spec: ModelSpec, config: Any, weights: Callable[[], dict[str, Any]]) -> PreTrainedModel:
    text = getattr(config, "text_config", None)
    if type(text) in MODEL_FOR_TEXT_ENCODING_MAPPING:  # one tower of two, as in CLIP
        config = text
    auto: Any = AutoModel
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:  # transformers has the encoder alone, as T5EncoderModel
        auto = AutoModelForTextEncoding
        config.is_encoder_decoder = False
    if spec.weights == "random":
        dtype = getattr(torch, spec.dtype) if spec.dtype != "auto" else getattr(config, "dtype", None) or torch.float32
        make = partial(auto.from_config, config, dtype=dtype, trust_remote_code=spec.trust_remote_code)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.weights_seed)
            model = _without_pooler(make)
    else:
        make = partial(
            auto.from_pretrained, source, config=config, output_loading_info=True, **weights(), **_placement(spec)
        )
        model, info = _without_pooler(make)
        if info["missing_keys"]:  # transformers would leave random numbers there
            raise ModelError(
                f"The weights in '{source}' are not those of the encoder {type(model).__name__}: "
                f"{min(info['missing_keys'])} is missing."
            )
    encoder: PreTrainedModel = model.get_encoder() if config.is_encoder_decoder else model
    return encoder


def _without_pooler(make: Callable[..., Any]) -> Any:
    """What `make` makes, without the layer over the first token that many encoders end with, and checkpoints lack."""
    try:
        return make(add_pooling_layer=False)
    except TypeError as error:
        if "add_pooling_layer" not in str(error):
            raise
        return make()


def _placement(spec: ModelSpec) -> dict[str, Any]:
    """The arguments of from_pretrained() for precision, quantisation and devices."""
    arguments: dict[str, Any] = {"dtype": spec.dtype}
    if spec.quantization == "int8":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif spec.quantization is not None:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=spec.quantization, bnb_4bit_compute_dtype=torch.float32
        )
    if spec.device_map is not None:
        arguments |= {"device_map": spec.device_map, "max_memory": spec.max_memory}
    elif spec.quantization is not None:
        arguments["device_map"] = {"": spec.device or ("cuda" if torch.cuda.is_available() else "cpu")}
    return arguments


def _tokenizer(source: str, files: dict[str, Any]) -> Any | None:
    """The tokenizer, or None where none comes with the model: prompts are then given as token ids."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **files)
    except ImportError:  # its first line says which library to install
        raise
    except Exception:
        return None
    # Of no files, transformers makes one that knows its special tokens, and perhaps the space.
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_tokens) + 2 else None


def _facts(source: str, spec: ModelSpec) -> dict[str, Any]:
    """Which weights these are: the hash of a folder's, the commit on the hub, or the seed."""
    if spec.weights == "random":
        return {"weights_from": "random numbers", "weights_seed": spec.weights_seed, "torch": torch.__version__}
    folder = Path(source)
    if folder.is_dir():
        # Over the files' names and hashes, as probekit does for a folder that it loads itself.
        digest = hashlib.sha256()
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        for path in files:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return {"weights_from": "folder"} | ({"weights_sha256": digest.hexdigest()} if files else {})
    # transformers does not say which commit it took; but that is in the hub's cache now, in a folder named by it.
    config = try_to_load_from_cache(source, "config.json", revision=spec.revision)
    commit = Path(config).parent.name if isinstance(config, str) else spec.revision
    return {"weights_from": "hub", "revision": commit}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and tables of the weights that an encoder leaves out."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
