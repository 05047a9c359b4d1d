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
    """``map``, one item ahead of the caller: two results are in memory at most.

    Items are read, and the function runs, in a thread of its own; errors of both are raised here, in their turn.
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
    """``prefetch`` where a GPU computes; on a CPU one after the other, as its cores are busy with computing."""
    return map(function, items) if device.type == "cpu" else prefetch(function, items)
