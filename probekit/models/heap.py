"""The heap: large temporaries go back to the system as soon as they are freed.

glibc keeps what it has freed, up to 32 MB each, for the next of that size. Quantised layers make such temporaries by
the hundred, of many sizes (weights in fp16 or fp32), and what is kept of them comes to more than the weights: 2.5 GB
beside the 1 GB of gpt2-xl in NF4. Given back at once they cost no time that could be measured.
"""

from __future__ import annotations

import ctypes
import sys

LARGE = 4 << 20
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of <malloc.h>


def give_back_large() -> None:
    """From here on, in this process. Nothing where the C library is another."""
    if sys.platform.startswith("linux"):
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_MMAP_THRESHOLD, LARGE)
