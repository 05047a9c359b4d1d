"""Ctrl-C, SIGTERM and SIGHUP during a step: the step is finished and kept, then the run stops."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llara_cli.core.errors import Terminated
from llara_cli.training.engine import Engine

SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
ECHO_SECONDS = 0.5
"""Seconds in which further signals count as the first: launchers repeat what the scheduler sends to every process."""


@contextmanager
def deferred_interrupt(engine: Engine) -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """Defer the first signal until all processes ask for it together; a second one stops at once.

    What is given tells whether to stop: the exception to raise then, the same in every process. A signal that nobody
    asked about any more, such as one during the last checkpoint, is delivered at the end. A signal that is ignored
    (``nohup``) stays so, and all keep their handlers outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    received: list[tuple[int, float]] = []
    answered = False  # whether somebody has been told to stop, or a second signal has stopped all

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal answered
        received.append((number, time.monotonic()))
        if received[-1][1] - received[0][1] > ECHO_SECONDS:
            answered = True
            restore()
            signal.raise_signal(number)

    def stop() -> KeyboardInterrupt | None:
        nonlocal answered
        found = _agreed(engine, received[0][0] if received else None)
        answered = answered or found is not None
        return found

    for number in handlers:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
        if received and not answered:
            signal.raise_signal(received[0][0])


def _agreed(engine: Engine, mine: int | None) -> KeyboardInterrupt | None:
    """The exception to raise in every process if any has received a signal."""
    if not engine.agreed(mine is not None):
        return None
    number = next(number for number in SIGNALS if engine.agreed(mine == number))
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
