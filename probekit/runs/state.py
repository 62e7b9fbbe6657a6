"""What holds for the whole process, and what an analysis might change for all others: read, compared and put back."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from probekit.errors import BusyError

# Variables that torch sets for itself when somebody first needs its compiler.
OF_TORCH = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
DEVICES = ("cpu", "cuda")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP") if hasattr(signal, name)]


# Held by the thread in which a run computes.
_computing = threading.RLock()


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
    for name, was in before.items():
        part = parts()[name]
        now = _read(part)
        if now != was and not isinstance(was, Unreadable):
            changed[name] = (was, now)
            part.write(was)
    return changed


@contextmanager
def standard() -> Iterator[None]:
    """torch's dtype, device, grad, inference, autocast and anomaly modes and precision of float32 products as they are
    in a process that has just begun, while open: what a run finds does not depend on how its caller set them.
    Afterwards the caller's settings are there again.

    Raises BusyError in a thread while a run computes in another: these settings are those of the whole process.
    """
    if not _computing.acquire(blocking=False):
        raise BusyError(
            "Another run computes in this process, and two would change each other's settings; wait until it has "
            "ended, or use another process."
        )
    try:
        with _standard():
            yield
    finally:
        _computing.release()


@contextmanager
def _standard() -> Iterator[None]:
    import torch

    if torch.cuda.is_available():  # without it cuBLAS has no deterministic products; it is read when that is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    values = {
        "torch's default dtype": torch.float32,
        "torch's default device": None,
        "torch's anomaly mode": (False, True),
        "torch's precision of float32 products": "highest",
        "torch's grad mode": True,
    }
    before = {name: _read(parts()[name]) for name in values}
    try:
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            for device in DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            put_back({name: value for name, value in values.items() if not isinstance(before[name], Unreadable)})
            yield
    finally:
        put_back(before)


def set_deterministic(mode: int) -> None:
    """As `torch.set_deterministic_debug_mode`: 0, 1 (deterministic where that is possible) or 2 (or else raise).

    torch's other function for it imports its compiler, which takes seconds; where that is there, it is told.
    """
    import torch

    torch.set_deterministic_debug_mode(mode)
    if compiler := sys.modules.get("torch._inductor.config"):
        compiler.deterministic = mode > 0  # type: ignore[attr-defined]


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
    import numpy
    import torch

    return {
        "torch's default dtype": Part(torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": Part(_default_device, torch.set_default_device),
        "torch's grad mode": Part(torch.is_grad_enabled, torch.set_grad_enabled),
        "torch's anomaly mode": Part(_anomaly, lambda was: torch.autograd.set_detect_anomaly(*was)),
        "torch's number of threads": Part(torch.get_num_threads, torch.set_num_threads),
        "torch's deterministic flag": Part(torch.get_deterministic_debug_mode, set_deterministic),
        "torch's filling of memory": Part(_fills, fill_memory),
        "torch's precision of float32 products": Part(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        ),
        "torch's autocast": Part(_autocast, _set_autocast),
        "torch's modes": Part(_modes, _leave_modes),
        "numpy's handling of errors": Part(numpy.geterr, lambda was: numpy.seterr(**was)),
        "the handlers of signals": Part(_handlers, _restore_handlers),
        "the alarm": Part(_alarm, _no_alarm),
        "standard error": Part(lambda: sys.stderr, lambda was: setattr(sys, "stderr", was)),
        "how warnings are shown": Part(lambda: warnings.showwarning, lambda was: setattr(warnings, "showwarning", was)),
        "the collection of garbage": Part(gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
        "the limit of recursion": Part(sys.getrecursionlimit, sys.setrecursionlimit),
        "the tracing of calls": Part(lambda: (sys.gettrace(), sys.getprofile()), _restore_tracing),
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


def _autocast() -> list[bool]:
    import torch

    return [torch.is_autocast_enabled(device) for device in DEVICES]


def _set_autocast(was: list[bool]) -> None:
    import torch

    for device, enabled in zip(DEVICES, was, strict=True):
        torch.set_autocast_enabled(device, enabled)


def _modes() -> list[Any]:
    """What stands between a call of torch and its operators, for whoever calls."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return list(_get_current_dispatch_mode_stack())


def _leave_modes(was: list[Any]) -> None:
    while _modes()[len(was) :]:
        _modes()[-1].__exit__(None, None, None)


def _handlers() -> list[Any]:
    """Those of Python, and None for others."""
    return [signal.getsignal(number) for number in SIGNALS]


def _restore_handlers(was: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(SIGNALS, was, strict=True):
            if handler is not None:
                signal.signal(number, handler)


def _alarm() -> bool:
    return hasattr(signal, "getitimer") and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _no_alarm(was: bool) -> None:
    if not was:  # one that was there, and has rung since, is nobody's change
        signal.setitimer(signal.ITIMER_REAL, 0)


def _restore_tracing(was: tuple[Any, Any]) -> None:
    sys.settrace(was[0])
    sys.setprofile(was[1])


def _fills() -> bool:
    return bool(_of_memory().fill_uninitialized_memory)


def fill_memory(fills: bool) -> None:
    """Whether torch fills memory that is not written yet, where it is deterministic."""
    _of_memory().fill_uninitialized_memory = fills


def _of_memory() -> Any:  # it has its setting as an attribute that is made at runtime
    from torch.utils import deterministic

    return deterministic


def _environment() -> dict[str, str]:
    found = dict(os.environ)
    for name in OF_TORCH:
        found.pop(name, None)
    return found


def _restore_environment(was: dict[str, str]) -> None:
    for name in _environment().keys() - was.keys():
        del os.environ[name]
    os.environ.update(was)
