"""The C library's allocator, set for work that needs the same large pieces of memory again and again."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of glibc's malloc.h."""
NEVER = 2**31 - 1
"""Bytes; the largest value that ``mallopt`` takes."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for its next tensors; whether the C library takes it.

    glibc gives large pieces back to the kernel when they are freed, which clears every page of the next ones: in a
    training step on a CPU, gigabytes. Only Linux's glibc is told, and not where the user told it something else
    (``GLIBC_TUNABLES``, ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``). ``malloc_trim`` still gives all back.
    """
    told = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    told = told or any(f"MALLOC_{name}_THRESHOLD_" in os.environ for name in ("TRIM", "MMAP"))
    if told or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # another C library
        return False
    return bool(library.mallopt(TRIM_THRESHOLD, NEVER)) and bool(library.mallopt(MMAP_THRESHOLD, NEVER))
