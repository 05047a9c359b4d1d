"""Work on the next item while the caller is busy with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")


def ahead(function: Callable[[ItemT], DoneT], items: Iterable[ItemT]) -> Iterator[DoneT]:
    """``function`` of each item, in order, one ahead of the caller: two results are held at most.

    Items are taken, and the function runs, in one thread of its own; what either raises is raised here, in its turn.
    """
    source = iter(items)

    def step() -> list[DoneT]:
        return [function(item) for item in islice(source, 1)]

    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(step)
        while done := coming.result():
            coming = thread.submit(step)
            yield from done


def while_computing(
    function: Callable[[ItemT], DoneT], items: Iterable[ItemT], device: torch.device
) -> Iterator[DoneT]:
    """``ahead`` where a GPU computes; on a CPU one after the other, as its cores are busy with computing."""
    return map(function, items) if device.type == "cpu" else ahead(function, items)
