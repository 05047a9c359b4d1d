"""What the process is told to do with freed memory: tried in processes of their own, as it cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back")

PIECE = 100 * 2**20
FEW = PIECE // 2**21 // 2
"""Page faults: fewer than the piece makes even in huge pages of 2 MB."""
FAULTS = f"""
import ctypes, resource, sys
from llara_cli.model.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = (
    ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
)
def fill():
    piece = library.malloc({PIECE})
    ctypes.memset(piece, 1, {PIECE})
    library.free(piece)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def told(what: str, **variables: str) -> tuple[str, int]:
    """What ``keep_freed_memory`` gave, and the page faults of 100 MB that are filled a second time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "MALLOC"))}
    command = [sys.executable, "-c", FAULTS, what]
    found = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True).stdout.split()
    return found[0], int(found[1])


def test_freed_memory_is_used_again_without_the_kernel() -> None:
    assert told("nothing")[1] > FEW
    result, faults = told("keep")
    assert result == "True"
    assert faults < FEW


@pytest.mark.parametrize(
    "variable",
    [{"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}, {"MALLOC_MMAP_THRESHOLD_": "1048576"}],
    ids=["tunables", "variable"],
)
def test_what_the_user_set_stays(variable: dict[str, str]) -> None:
    result, faults = told("keep", **variable)
    assert result == "False"
    assert faults > FEW
