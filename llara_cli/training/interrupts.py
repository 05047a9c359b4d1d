"""Ctrl-C during a step: the step is finished and kept, then the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llara_cli.training.engine import Engine


@contextmanager
def deferred_interrupt(engine: Engine) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C is kept until it is asked for, by all processes together; the second stops at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: engine.agreed(pressed.is_set())
    finally:
        signal.signal(signal.SIGINT, previous)
