"""A setting of the whole process, for processes that belong to us. No torch here.

The command line calls it, and so do the workers that Ray starts. The library doesn't: the process
belongs to the program that imports it.
"""

import ctypes
import sys

M_TRIM_THRESHOLD = -1  # malloc.h
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Have the process keep the memory that it frees, for the next batch. Linux with glibc only.

    glibc gives large blocks back to the system and takes them again, page by page, for every
    layer's output: half of the time on a CPU with the light backbone (docs/log.md).
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
                mallopt(parameter, 2**31 - 1)
