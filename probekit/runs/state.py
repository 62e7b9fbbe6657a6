"""What holds for the whole process, and what an analysis might change for all others: read, compared and put back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

# Variables that torch sets for itself when somebody first needs its compiler.
OF_TORCH = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}


class Part(NamedTuple):
    """One setting of the process: how it is read, and how it is put back."""

    read: Callable[[], Any]
    write: Callable[[Any], object]


@dataclass(frozen=True)
class Unreadable:
    """Stands for a setting that cannot be read, such as a working directory that was removed."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def read_state() -> dict[str, Any]:
    """Every setting by its name, as it is now."""
    return {name: _read(part) for name, part in parts().items()}


def put_back(before: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Give back what `read_state` read: what had changed by its name, as it was and as it had become.

    A setting that could not be read before is left as it is.
    """
    changed = {}
    for name, part in parts().items():
        was, now = before[name], _read(part)
        if now != was and not isinstance(was, Unreadable):
            changed[name] = (was, now)
            part.write(was)
    return changed


def _read(part: Part) -> Any:
    try:
        return part.read()
    except OSError as error:
        return Unreadable(error.strerror or type(error).__name__)
    except RuntimeError:  # of torch, which refuses the old name of a setting to those who use its new ones
        return Unreadable("what torch does not tell")


@cache
def parts() -> dict[str, Part]:
    """The settings; the working directory is the last, since it alone may be impossible to give back."""
    import torch

    return {
        "torch's default dtype": Part(torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": Part(_default_device, torch.set_default_device),
        "torch's grad mode": Part(torch.is_grad_enabled, torch.set_grad_enabled),
        "torch's anomaly mode": Part(_anomaly, lambda was: torch.autograd.set_detect_anomaly(*was)),
        "torch's number of threads": Part(torch.get_num_threads, torch.set_num_threads),
        "torch's deterministic flag": Part(
            _deterministic, lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        ),
        "torch's precision of float32 products": Part(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        ),
        "the environment": Part(_environment, _restore_environment),
        "the working directory": Part(os.getcwd, os.chdir),
    }


def _default_device() -> Any:
    """The device that was set, or None; torch.get_default_device() tells no CPU that was set from none."""
    import torch

    context = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return None if context is None else context.device


def _anomaly() -> tuple[bool, bool]:
    import torch

    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _deterministic() -> tuple[bool, bool]:
    import torch

    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _environment() -> dict[str, str]:
    found = dict(os.environ)
    for name in OF_TORCH:
        found.pop(name, None)
    return found


def _restore_environment(was: dict[str, str]) -> None:
    for name in _environment().keys() - was.keys():
        del os.environ[name]
    os.environ.update(was)
