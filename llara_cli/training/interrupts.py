"""Ctrl-C, SIGTERM and SIGHUP during a step: the step is finished and saved, then the run stops."""

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
"""Seconds in which repeated signals are ignored: launchers repeat what schedulers send to every process."""


@contextmanager
def deferred_interrupt(engine: Engine) -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """Defer the first signal until all processes ask for it; a second one stops at once.

    Yields a function that returns the exception to raise, the same in every process, or None. A signal that arrives
    after its last call, as during the last checkpoint, is delivered on exit. Ignored signals (``nohup``) stay
    ignored. Outside the main thread nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    received: list[tuple[int, float]] = []
    answered = False  # whether an exception was returned, or a second signal raised

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
        exception = _agreed(engine, received[0][0] if received else None)
        answered = answered or exception is not None
        return exception

    for number in handlers:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
        if received and not answered:
            signal.raise_signal(received[0][0])


def _agreed(engine: Engine, received: int | None) -> KeyboardInterrupt | None:
    """The exception to raise in every process if any has received a signal."""
    if not engine.agreed(received is not None):
        return None
    number = next(number for number in SIGNALS if engine.agreed(received == number))
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
