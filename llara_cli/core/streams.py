"""Makes the standard streams safe: closed or full ones, and those of small terminals or narrow encodings."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import Any, TextIO

from llara_cli.core.errors import LlaraError

_FALLBACK = "backslashreplace"
_LARGEST_SIZE = 10_000
"""Most columns or lines of a terminal that are believed."""


def prepare_streams() -> None:
    """Make the three streams safe to use; call it once, before anything is printed or opened.

    A character that a stream's encoding lacks is written as an escape. Standard output that cannot be written raises
    ``LlaraError``; failures of standard error are ignored, as there is nowhere to report them.
    """
    for number in range(3):
        _open_if_closed(number)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = _wrapped(sys.stdout, _Output(1, "wb", closefd=False))
    sys.stderr = _wrapped(sys.stderr, _Error(2, "wb", closefd=False))
    for name in ("COLUMNS", "LINES"):
        if not _is_size(os.environ.get(name, "80")):
            del os.environ[name]


class _Output(io.FileIO):
    """Standard output; a failed write ends the command, and nothing more is written after it."""

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:  # what is still buffered is flushed once more at exit
            return len(data)
        try:
            return super().write(data) or 0
        except OSError as error:
            self._failed = True
            raise LlaraError(_problem(error)) from error


class _Error(io.FileIO):
    """Standard error, which never fails."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _problem(error: OSError) -> str:
    """The message about standard output; empty if its reader closed the pipe, which is no mistake (``| head``)."""
    if error.errno == errno.EPIPE:
        return ""
    return "standard output is closed" if error.errno == errno.EBADF else f"standard output: {error.strerror}"


def _open_if_closed(number: int) -> None:
    """Occupy a closed stream's descriptor: the next file opened would get it, and what is printed with it."""
    try:
        os.fstat(number)
    except OSError:
        # standard output is opened for reading, so that writing to it fails
        opened = os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _wrapped(stream: Any, raw: io.FileIO) -> TextIO:
    """The same stream over ``raw``."""
    encoding, errors = getattr(stream, "encoding", "utf-8"), getattr(stream, "errors", _FALLBACK)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors=_FALLBACK if errors in ("strict", "surrogateescape") else errors,
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


def _is_size(text: str) -> bool:
    """Whether this is a possible number of columns or lines: a huge one would fill the memory with blanks."""
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) <= _LARGEST_SIZE
