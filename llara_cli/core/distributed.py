"""The processes that ``accelerate launch`` or ``torchrun`` started for one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from llara_cli.core.launcher import launched_processes

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""Longest time that a process waits for the slowest one."""


Decide = Callable[[Callable[[], Any]], Any]
"""A function that has the first process call its argument, and returns the result in all processes."""


def alone(compute: Callable[[], T]) -> T:
    """``Decide`` of a single process."""
    return compute()


@dataclass(frozen=True)
class ProcessGroup:
    """The launched processes, and this one's rank among them; a single process if none were launched."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> ProcessGroup:
        """Join the process group; on GPUs each process gets one."""
        if launched_processes() == 1:
            return cls()
        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        return cls(state.process_index, state.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which opens and closes what all build."""
        return self.rank == 0

    @contextmanager
    def share(self, open_it: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
        """Context of ``open_it()``, opened in the first process only; its value is sent to the others, which wait."""
        if not self.leads:
            yield self._tell(None)
            return
        with open_it() as value:
            yield self._tell(value)

    def decide(self, choose: Callable[[], T]) -> T:
        """Call ``choose`` in the first process and return the result in all."""
        return self._tell(choose() if self.leads else None)

    def _tell(self, value: T | None) -> T:
        told = [value]
        if self.size > 1:
            broadcast_object_list(told)
        (said,) = told
        assert said is not None
        return said

    def wait(self) -> None:
        """Wait for all processes (a barrier)."""
        if self.size > 1:
            PartialState().wait_for_everyone()


def leave() -> None:
    """Destroy the process group, once all processes are here.

    Threads of a group that is still open when Python exits can abort the process ("terminate called ...").
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        PartialState().wait_for_everyone()
        torch.distributed.destroy_process_group()
