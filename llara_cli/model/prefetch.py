"""Computes the next item in a thread while the caller uses this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")


def prefetch(function: Callable[[ItemT], DoneT], items: Iterable[ItemT]) -> Iterator[DoneT]:
    """``map`` that computes one item ahead of the caller: at most two results are in memory.

    Items are read, and the function runs, in a thread of its own; errors of both are raised where their item is due.
    """
    source = iter(items)

    def step() -> list[DoneT]:
        return [function(item) for item in islice(source, 1)]

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(step)
        while done := coming.result():
            coming = thread.submit(step)
            yield from done


def while_computing(
    function: Callable[[ItemT], DoneT], items: Iterable[ItemT], device: torch.device
) -> Iterator[DoneT]:
    """``prefetch`` for a GPU; a plain ``map`` on a CPU, whose cores are busy computing."""
    return map(function, items) if device.type == "cpu" else prefetch(function, items)
