"""The model that runs of one process share: loaded once for those that name it one after another.

Each run has a subject of its own around it, so that nothing of what another run has computed is left in there.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.models.spec import ModelSpec
from probekit.plugins import Plugins

if TYPE_CHECKING:
    from torch import nn

    from probekit.subject import Subject


class Subjects:
    """Holds the model of the last run, if that run ended well, for a next run that names the same.

    At most one model is held, and it is let go before another is loaded. A run of which anything failed may have left
    what no comparison shows, so its model is not used again: the caller does not `keep` it.
    """

    def __init__(self) -> None:
        self._origin: _Origin | None = None
        self._model: nn.Module | None = None

    def take(self, spec: ModelSpec, plugins: Plugins) -> Subject:
        """The subject of this spec, of the model that is held or of one that is loaded now; from here on the caller's
        alone.

        Raises what loading raises.
        """
        from probekit.models.loading import LoadedModel, load_model
        from probekit.subject import subject_of

        if spec.compile:
            import torch

            torch.compiler.reset()  # what other runs have compiled counts to a limit of the process
        origin, model = self._origin, self._model
        self._origin = self._model = None
        if model is None or origin is None or not origin.is_of(spec, plugins):
            origin = model = None  # there must not be two
            gc.collect()  # a subject, and what was computed with it, hold each other and the model
            files = _files(spec)
            loaded = load_model(spec, plugins)
            origin, model = _Origin.of(loaded, spec, plugins, files), loaded.model
            if origin is None:
                return subject_of(loaded, spec, plugins)
            del loaded
        subject = subject_of(LoadedModel(model, *origin.own()), spec, plugins)
        self._origin = origin
        return subject

    def keep(self, subject: Subject | None) -> None:
        """Hold the model of the subject that was taken last, which is as it was when it was taken."""
        self._model = None if subject is None or self._origin is None else subject.model

    def release(self) -> None:
        """Hold nothing any more."""
        self._origin = self._model = None


@dataclass(frozen=True)
class _Origin:
    """Where a model came from, and what came with it, as it was before any run had it."""

    spec: ModelSpec
    plugins: Plugins
    files: Any
    tokenizer: Any
    facts: dict[str, Any]

    @classmethod
    def of(cls, loaded: Any, spec: ModelSpec, plugins: Plugins, files: Any) -> _Origin | None:
        """None where the tokenizer cannot be copied: a run may set it otherwise, and would do so for those after it."""
        try:
            tokenizer = copy.deepcopy(loaded.tokenizer)
        except Exception:  # of a plugin's loader, or of code that came with a model
            return None
        return cls(spec, plugins, files, tokenizer, copy.deepcopy(loaded.facts))

    def is_of(self, spec: ModelSpec, plugins: Plugins) -> bool:
        return self.spec == spec and self.plugins is plugins and self.files == _files(spec)

    def own(self) -> tuple[Any, dict[str, Any]]:
        """A tokenizer and facts for one run."""
        return copy.deepcopy(self.tokenizer), copy.deepcopy(self.facts)


def _files(spec: ModelSpec) -> Any:
    """The files of a model's folder with their sizes and times; nothing for a name on the hub."""
    folder = Path(spec.name).expanduser()
    try:
        states = {path.name: path.stat() for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    except OSError:
        return None
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}
