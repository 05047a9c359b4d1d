"""What the process is told to do with memory: tried in processes of their own, as it cannot be taken back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back")

FAULTS = """
import ctypes, resource, sys
from llara_cli.cpu.allocator import keep_freed_memory
what, size, count = sys.argv[1], int(sys.argv[2]) * 2**20, int(sys.argv[3])
print(keep_freed_memory() if what == "keep" else None)
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def touch():
    pieces = [library.malloc(size) for _ in range(count)]
    for piece in pieces:
        for at in range(0, size, 2**20):
            ctypes.memset(piece + at, 1, 1)
    for piece in pieces:
        library.free(piece)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
FEW = 0.2
"""Page faults for each MB that is touched: fewer than there are even in huge pages of 2 MB."""


def told(what: str, size: int = 100, count: int = 1, **variables: str) -> tuple[str, float]:
    """What ``keep_freed_memory`` gave, and the page faults a MB when pieces of ``size`` MB are touched again."""
    others = ("GLIBC", "MALLOC", "LD_PRELOAD")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    command = [sys.executable, "-c", FAULTS, what, str(size), str(count)]
    found = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True).stdout.split()
    return found[0], int(found[1]) / (size * count)


@pytest.mark.parametrize(("size", "count"), [(100, 1), (2500, 1), (100, 25)], ids=["large", "huge", "many"])
def test_freed_memory_is_used_again_without_the_kernel(size: int, count: int) -> None:
    assert told("nothing", size, count)[1] > FEW
    result, faults = told("keep", size, count)
    assert result == "True"
    assert faults < FEW


@pytest.mark.parametrize(
    "variable",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"},
        {"MALLOC_MMAP_THRESHOLD_": "1048576"},
        {"MALLOC_TRIM_THRESHOLD_": "1048576"},
    ],
    ids=["tunable", "mmap", "trim"],
)
def test_what_the_user_set_stays(variable: dict[str, str]) -> None:
    result, faults = told("keep", **variable)
    assert result == "False"
    assert faults > FEW


def test_what_the_user_set_of_other_things_is_no_hindrance() -> None:
    result, faults = told("keep", GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert result == "True"
    assert faults < FEW


SHAPES = """
import psutil
import torch
from llara_cli.cpu import matmul
matmul.onednn_is_faster, matmul.LEAST_WORK = lambda: True, 0
weight = torch.randn(64, 64)
def multiply(tokens):
    for count in tokens:
        matmul.linear(torch.randn(count, 64), weight)
multiply(range(100, 300))
before = psutil.Process().memory_info().rss
multiply(range(300, 700))
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.usefixtures("onednn")
def test_shapes_that_come_once_take_no_memory_for_good() -> None:
    plain = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    done = subprocess.run([sys.executable, "-c", SHAPES], env=plain, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**26
