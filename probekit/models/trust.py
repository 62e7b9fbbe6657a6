"""Trust: what reading a model may do beyond reading data, and who may grant it.

Nothing that comes with a model grants anything. Code that comes with it runs with `trust_remote_code` only, pickle is
read with `allow_pickle` only, and both are said by who calls: on the command line or as arguments of Python. A folder
is read without the network, whatever its files name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from probekit.errors import ModelError
from probekit.models.configs import check_config
from probekit.models.folders import adapter_sentence, check_folder, pickle_sentence, weight_files, weights_named
from probekit.models.spec import ModelSpec

# Ways to compute that transformers itself has; any other is code of the hub (`kernels-community/…`), or may become it.
_ATTENTION = ("eager", "sdpa", "flex_attention")
_EXPERTS = ("eager", "grouped_mm", "batched_mm")

_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
_lock = threading.Lock()
_depths = {"network": 0, "conversion": 0}
_before: dict[str, Any] = {}


@dataclass(frozen=True)
class Given:
    """What a model is read with: its config, and the arguments `files` of `from_pretrained` for its tokenizer."""

    source: str
    spec: ModelSpec
    config: Any
    files: dict[str, Any]

    def config_of(self, kind: Any) -> Any:
        """The config as a class of models reads it, where that is not the one that the config names itself."""
        wanted = getattr(kind, "config_class", None)
        if wanted is None or isinstance(self.config, wanted):
            return self.config
        found = wanted.from_pretrained(self.source, **self.files)
        return found if self.spec.trust_remote_code else without_foreign_ways(found)

    def weight_files(self) -> list[Path]:
        """The safetensors files of a folder; none of a name on the hub, or where weights are pickled, as is allowed.

        Raises ModelError with one sentence if they are pickled though it is not, or are no files of the folder.
        """
        said = weights_named(self.config, self.spec.name, self.spec.allow_pickle)
        if not Path(self.source).is_dir():
            return []
        return weight_files(Path(self.source), self.spec.name, self.spec.allow_pickle, said)

    def weights(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` for weights, beside `config`. Raises ModelError as `weight_files` does."""
        self.weight_files()
        return self.files if self.spec.allow_pickle else {**self.files, "use_safetensors": True}


@contextmanager
def reading_model(source: str, spec: ModelSpec) -> Iterator[Given]:
    """While open, the model in a folder or of the hub's name `source` can be read, as far as it is trusted:

        with probekit.reading_model(folder, spec) as given:
            tokenizer = AutoTokenizer.from_pretrained(folder, **given.files)
            model = AutoModel.from_pretrained(folder, config=given.config, **given.weights())

    Code that comes with it runs and pickle is read only if the spec's `trust_remote_code` and `allow_pickle` say so; a
    folder is read without the network. The other fields but `revision` do not count. Raises ModelError with one
    sentence for what is not read at all: an adapter over a model that it names, a config that no model has, damaged
    files. What the libraries raise beyond that is raised.
    """
    files: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    with ExitStack() as stack:
        stack.enter_context(_without_conversion())
        if Path(source).is_dir():
            check_folder(Path(source), spec.name)
            files["local_files_only"] = True
            stack.enter_context(without_network())
        try:
            check_config(PreTrainedConfig.get_config_dict(source, **files)[0], spec.name)
        except OSError as error:
            if "does not appear to have a file named config.json" in str(error):
                _refuse_adapter(source, spec)
            raise
        _refuse_adapter(source, spec)
        config = AutoConfig.from_pretrained(source, **files)
        given = Given(source, spec, config if spec.trust_remote_code else without_foreign_ways(config), files)
        try:
            yield given
        except OSError as error:
            if "cannot be loaded with `safetensors`" in str(error):  # of the hub, where no file was looked at before
                raise ModelError(pickle_sentence(spec.name)) from error
            raise


def _refuse_adapter(source: str, spec: ModelSpec) -> None:
    """Raise ModelError if transformers would load an adapter, where it can, over a model that is named in its file."""
    if is_peft_available() and find_adapter_config_file(source, revision=spec.revision) is not None:
        raise ModelError(adapter_sentence(spec.name))


@contextmanager
def without_network() -> Iterator[None]:
    """While open, libraries of Hugging Face reach nothing but the cache on this machine, in any thread.

    `local_files_only` alone does not keep them: what a config names, such as a backbone, is asked for without it.
    """
    with _switched("network", lambda: constants.HF_HUB_OFFLINE, _set_offline, True):
        yield


@contextmanager
def _without_conversion() -> Iterator[None]:
    """While open, transformers does not ask the hub to convert weights for whoever comes next."""

    def put(value: str | None) -> None:
        if value is None:
            os.environ.pop(_CONVERSION, None)
        else:
            os.environ[_CONVERSION] = value

    with _switched("conversion", lambda: os.environ.get(_CONVERSION), put, "1"):
        yield


def _set_offline(value: bool) -> None:
    constants.HF_HUB_OFFLINE = value


@contextmanager
def _switched(what: str, get: Any, put: Any, value: Any) -> Iterator[None]:
    """A switch of the whole process, put back by the last of those that hold it."""
    with _lock:
        if _depths[what] == 0:
            _before[what] = get()
            put(value)
        _depths[what] += 1
    try:
        yield
    finally:
        with _lock:
            _depths[what] -= 1
            if _depths[what] == 0:
                put(_before.pop(what))


def without_foreign_ways(config: Any) -> Any:
    """A config that names no code: attention and experts are computed as transformers itself does, as it would where
    nothing is said. Changed in place.
    """
    for name in ("fusion_config", "distributed_config", "kernel_config"):
        vars(config).pop(name, None)
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    for part in [part for part in parts if part is not None]:
        without_foreign_ways(part)
    for field, known in (("_attn_implementation_internal", _ATTENTION), ("_experts_implementation_internal", _EXPERTS)):
        if vars(config).get(field) not in (None, *known):
            setattr(config, field, None)
    return config
