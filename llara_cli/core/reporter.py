"""Notes, warnings and progress of a job; the library itself prints nothing."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

_MOVE_SECONDS = 0.1
ItemT = TypeVar("ItemT")
log = logging.getLogger("llara")


class LlaraWarning(UserWarning):
    """A warning of a job that goes on."""


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        task: what is being done, as ``encoding passages``.
        done: how much of it is done, in ``unit``.
        total: how much there is to do; None: unknown.
        unit: ``texts``, ``vectors``, ``MB`` ...; empty: steps.
        detail: other information, as the loss of a step.
        finished: whether the task is over.
    """

    task: str
    done: float = 0
    total: float | None = None
    unit: str = ""
    detail: str = ""
    finished: bool = False


class Bar:
    """Progress of a task: ``advance`` moves it, ``show`` sets its detail."""

    def advance(self, amount: float = 1) -> None:
        """Count ``amount`` more as done."""

    def show(self, text: str) -> None:
        """Set the detail to ``text``."""

    def finish(self) -> None:
        """Take what is done as the total, which was unknown or an estimate."""

    def over(self, items: Iterable[ItemT]) -> Iterator[ItemT]:
        """Yield the items and count them; the bar is drawn a few times a second only, as drawing takes time."""
        waiting, moved = 0, time.monotonic()
        try:
            for item in items:
                waiting += 1
                if time.monotonic() - moved > _MOVE_SECONDS:
                    self.advance(waiting)
                    waiting, moved = 0, time.monotonic()
                yield item
        finally:
            self.advance(waiting)


class Reporter:
    """Reports what a job does: notes by ``logging`` (logger ``llara``), warnings by ``warnings``.

    ``progress`` is called with a ``Progress`` whenever a task moves.

    >>> from llara_cli.core.reporter import Reporter
    >>> seen = []
    >>> with Reporter(seen.append).bar("encoding", total=2, unit="texts") as bar:
    ...     bar.advance(2)
    >>> seen[-1]
    Progress(task='encoding', done=2, total=2, unit='texts', detail='', finished=True)
    """

    def __init__(self, progress: Callable[[Progress], None] | None = None) -> None:
        self._progress = progress
        self._warned: set[str] = set()

    def note(self, message: str) -> None:
        """Log at level INFO."""
        log.info(message)

    def warn(self, message: str) -> None:
        """Warn with ``LlaraWarning``."""
        warnings.warn(message, LlaraWarning, stacklevel=3)

    def warn_once(self, message: str) -> None:
        """``warn``, but only the first time for each message."""
        if message not in self._warned:
            self._warned.add(message)
            self.warn(message)

    def detail(self, message: str) -> None:
        """Log at level DEBUG."""
        log.debug(message)

    @contextmanager
    def status(self, doing: str) -> Iterator[None]:
        """Context of a task of unknown length."""
        with self.bar(doing, None):
            yield

    @contextmanager
    def bar(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Bar]:
        """Context of a task whose progress is reported; ``total`` None: unknown."""
        bar = _ReportedBar(self._progress or _ignore, label, total, unit)
        bar.tell()
        yield bar
        bar.end()


class _ReportedBar(Bar):
    """A bar that calls a function with its ``Progress``."""

    def __init__(self, tell: Callable[[Progress], None], task: str, total: float | None, unit: str) -> None:
        self._tell, self._task, self._total, self._unit = tell, task, total, unit
        self._done: float = 0
        self._detail = ""

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        self.tell()

    def show(self, text: str) -> None:
        self._detail = text
        self.tell()

    def finish(self) -> None:
        self._total = self._done

    def tell(self, *, finished: bool = False) -> None:
        """Call the function with the current progress."""
        self._tell(Progress(self._task, self._done, self._total, self._unit, self._detail, finished))

    def end(self) -> None:
        """Call the function a last time."""
        self.tell(finished=True)


def _ignore(progress: Progress) -> None:
    pass
