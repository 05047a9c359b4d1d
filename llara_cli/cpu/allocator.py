"""Memory of the process: its size, and settings of the C library's allocator."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import psutil

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_MAX`` of glibc's malloc.h."""
NEVER, NONE = -1, 0
SETTINGS = ("trim_threshold", "top_pad", "mmap_threshold", "mmap_max")
"""glibc's tunables about returning memory to the system."""


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors; return whether the C library supports it.

    By default glibc returns large blocks to the kernel, which has to clear every page of the next ones: gigabytes in a
    training step on a CPU. The setting holds for the whole process and cannot be undone (``malloc_trim`` still returns
    free pages). It applies to glibc on Linux only, and not if the user has set any of the same (``GLIBC_TUNABLES``,
    ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_MAX_`` ...).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    set_by_user = any(f"malloc.{name}=" in tunables or f"MALLOC_{name.upper()}_" in os.environ for name in SETTINGS)
    if set_by_user or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # another C library
        return False
    # not the threshold of mmap: releases before 2.35 refuse values above 32 MB
    return bool(library.mallopt(MMAP_MAX, NONE)) and bool(library.mallopt(TRIM_THRESHOLD, NEVER))


def resident_memory() -> int:
    """Resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def give_back_memory() -> None:
    """Collect garbage and let glibc return free memory to the system, so that it is not counted."""
    gc.collect()
    if sys.platform != "win32" and hasattr(trim := ctypes.CDLL(None), "malloc_trim"):
        trim.malloc_trim(0)
