"""Errors: the work failed, or the caller made a mistake."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota, a file that is too large."""


class LlaraError(Exception):
    """The work failed: shown as one ``error: ...`` line, exit code 1."""

    exit_code = 1


class UserError(LlaraError):
    """The caller's mistake: the message says what is wrong, where, and how to fix it; exit code 2."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a run as Ctrl-C does; ``signal``: the number of the one received."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory, or a GPU's, was too small: no mistake in what the user gave."""
    told = str(error).lower()
    phrases = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(phrase in told for phrase in phrases)
