"""The heap: while a model is quantised, large temporaries go back to the system as soon as they are freed.

glibc keeps what has been freed, up to 32 MB each, for the next of that size. Quantising makes such temporaries by the
hundred, between weights that stay, and what is kept of them comes to more than the weights: 1.6 GB beside the 1.7 GB of
gpt2-xl in int8. In the steps afterwards it is the other way round: what is kept need not be asked for again, which
would take them one and a half times as long.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Options of <malloc.h>: from which size on memory is the system's own, and how much of it stays once it is free.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
# What glibc arrives at by itself where large blocks are freed.
_KEPT = 32 << 20


@contextmanager
def giving_back_large() -> Iterator[None]:
    """While open, in this process; from then on glibc keeps what it would have come to keep by itself. Nothing where
    the C library is another, or environment variables tell it what to do.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    ours = sys.platform.startswith("linux") and not chosen
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if ours else None
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, 4 << 20)
    set_option(_TRIM_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, _KEPT)
        set_option(_TRIM_THRESHOLD, 2 * _KEPT)
