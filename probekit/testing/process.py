"""The state of the process that an analysis must leave alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


class GlobalState:
    """What a block changes of the process's state, in `changed`; at the block's end everything is put back."""

    def __init__(self) -> None:
        self.changed: list[str] = []

    def __enter__(self) -> GlobalState:
        self._before = {name: read() for name, (read, _) in _parts().items()}
        return self

    def __exit__(self, *_: object) -> None:
        for name, (read, write) in _parts().items():
            was = self._before[name]
            if (now := _read(read)) != was:
                self.changed.append(f"{name} ({_difference(was, now)})")
                write(was)


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OSError as error:  # the working directory was removed
        return error.strerror


def _parts() -> dict[str, tuple[Callable[[], Any], Callable[[Any], object]]]:
    import torch

    return {
        "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
        "torch's deterministic flag": (
            _deterministic,
            lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1]),
        ),
        "torch's precision of float32 products": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        "the working directory": (os.getcwd, os.chdir),
        "the environment": (lambda: dict(os.environ), _restore_environment),
    }


def _deterministic() -> tuple[bool, bool]:
    import torch

    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _restore_environment(was: dict[str, str]) -> None:
    for name in os.environ.keys() - was.keys():
        del os.environ[name]
    os.environ.update(was)


def _difference(was: Any, now: Any) -> str:
    if isinstance(was, dict):
        return ", ".join(sorted(name for name in {*was, *now} if was.get(name) != now.get(name)))
    return f"{was} before, {now} after"
