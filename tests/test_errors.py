"""Errors are sentences with an exit code each."""

from __future__ import annotations

import errno

import pytest
import torch

from probekit import errors
from probekit.errors import nearest, out_of_memory, size


@pytest.mark.parametrize(
    ("kind", "code"),
    [("AnalysisError", 1), ("UsageError", 2), ("PluginError", 3), ("ModelError", 4)],
)
def test_each_kind_of_error_has_its_exit_code_and_one_root(kind: str, code: int) -> None:
    error = getattr(errors, kind)("What was wrong.")
    assert isinstance(error, errors.ProbekitError)
    assert error.exit_code == code
    assert str(error) == "What was wrong."


def test_only_a_near_word_is_offered() -> None:
    assert nearest("stps", ["steps", "restarts"]) == " Did you mean 'steps'?"
    assert nearest("zebra", ["steps", "restarts"]) == ""
    assert nearest("steps", []) == ""
    assert nearest("", ["steps"]) == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("unable to mmap 1073741824 bytes from file </x>: Cannot allocate memory (12)"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_known_whoever_says_it(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a …"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_another_error_is_not_memory(error: BaseException) -> None:
    assert not out_of_memory(error)


def test_a_size_has_two_digits_and_the_unit_that_fits() -> None:
    counts = (0, 999, 1024, 15 << 20, 3.14 * 2**30, 2e15)
    assert [size(count) for count in counts] == ["0 bytes", "999 bytes", "1.0 KiB", "15 MiB", "3.1 GiB", "1819 TiB"]
