"""Memory of the process: its size, and whether the C library keeps what is freed."""

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
"""What glibc lets its user set about giving memory back, by the names of its tunables."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for its next tensors; whether the C library takes it.

    glibc gives large pieces back to the kernel when they are freed, which clears every page of the next ones: in a
    training step on a CPU, gigabytes. It holds for the whole process and cannot be taken back (``malloc_trim`` still
    gives back the pages that are free at the time). Only Linux's glibc is told, and not where the user told it about
    the same (``GLIBC_TUNABLES``, ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_MAX_`` ...).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    told = any(f"malloc.{name}=" in tunables or f"MALLOC_{name.upper()}_" in os.environ for name in SETTINGS)
    if told or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # another C library
        return False
    # no threshold for mmap: releases before 2.35 refuse one of more than 32 MB
    return bool(library.mallopt(MMAP_MAX, NONE)) and bool(library.mallopt(TRIM_THRESHOLD, NEVER))


def resident_memory() -> int:
    """Bytes of the machine's memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def give_back_memory() -> None:
    """Drop what is unused, and let the C library (glibc) hand it to the system, so that it is not counted."""
    gc.collect()
    if sys.platform != "win32" and hasattr(trim := ctypes.CDLL(None), "malloc_trim"):
        trim.malloc_trim(0)
