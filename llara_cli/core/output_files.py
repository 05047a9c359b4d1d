"""Output files named by the user: checked before the work, and written atomically."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llara_cli.core.artifacts import KINDS
from llara_cli.core.errors import LlaraError, UserError

_OWN = (*KINDS, "results", "cache", "tracking", ".locks")
"""Folders of the workspace that only llara writes to."""
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
NAME_BYTES = 255
"""Most bytes of a file name, on every common file system."""
_LINKS = 40
"""Symbolic links followed in a row: Linux's limit."""


def check_output(
    path: Path, workspace: Path, inputs: Iterable[Path] = (), *, setting: str = "output", own: Iterable[str] = _OWN
) -> None:
    """Raise ``UserError`` if ``path`` cannot be written, or if that would destroy something else.

    ``inputs``: files and folders that the command reads; ``own``: folders of the workspace that nobody else writes to.
    """
    shown = f"`{setting}={path}`"
    if is_stream(path):
        return
    target = _checked_place(path, shown)
    if any(target.is_relative_to((workspace / folder).resolve()) for folder in own):
        raise UserError(f"{shown} lies among the files that llara keeps in the workspace: name another place")
    if target == (workspace / "llara.toml").resolve():
        raise UserError(f"{shown} holds the settings of the workspace: name another file")
    if target.exists() and any(_holds(source, target) for source in inputs):
        raise UserError(f"{shown} is an input of this command: name another file")


def _checked_place(path: Path, shown: str) -> Path:
    """Resolve all links. Raises ``UserError`` if the file cannot be written."""
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise UserError(f"{shown}: the name is too long: a file system takes {NAME_BYTES} bytes")
    try:
        target = path.resolve()
        is_folder, is_there = target.is_dir(), target.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{shown}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    if is_folder:
        raise UserError(f"{shown} is a folder: name a file in it")
    if is_there and not target.is_file():
        raise UserError(f"{shown} is not a regular file, pipe or character device: name another")
    if not target.parent.is_dir():
        raise UserError(f"{shown}: no such folder to write into")
    if not os.access(target.parent, os.W_OK | os.X_OK) or (is_there and not os.access(target, os.W_OK)):
        raise UserError(f"{shown}: not writable: name a place that is")
    return target


def _holds(source: Path, target: Path) -> bool:
    """Whether ``target`` is the file ``source``, by any name, or lies in the folder ``source``."""
    if source.is_dir():
        return target.is_relative_to(source.resolve())
    return source.exists() and target.samefile(source)


def is_stream(path: Path) -> bool:
    """Whether the path is a pipe, a terminal or another character device, or an open file such as /dev/stdout."""
    if (number := _descriptor(path)) is not None:
        try:
            os.fstat(number)
        except OSError as error:
            raise UserError(f"{path}: not open: name a file") from error
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def is_standard_output(path: Path) -> bool:
    """Whether writing to the path writes to standard output."""
    if (number := _descriptor(path)) is not None:
        return number == 1
    try:
        return is_stream(path) and os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def _descriptor(path: Path) -> int | None:
    """The file descriptor of a path such as /dev/stdout or /dev/fd/3, or of a link to one; else None."""
    link = path.absolute()
    for _ in range(_LINKS):
        name = os.path.normpath(link)
        if name in _STANDARD:
            return _STANDARD[name]
        if found := _DESCRIPTOR.fullmatch(name):
            return int(found[1])
        try:
            link = link.parent / link.readlink()
        except (OSError, ValueError):  # not a link, or not a valid name
            return None
    return None


class _Named(io.FileIO):
    """An open file whose errors show the path that the user wrote."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(number, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno == errno.EPIPE and is_standard_output(self._path):
                raise LlaraError("") from error  # its reader has closed the pipe, which is no mistake (| head)
            raise LlaraError(f"{self._path}: cannot be written: {error.strerror}") from error


@contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open an output file at ``path``, which ``check_output`` has checked before.

    A regular file is written under a temporary name in the same folder, and replaces the old one, with its permissions,
    when all is written; links are followed. A pipe, a device or an open file is written to directly.
    Raises ``LlaraError`` if it cannot be written.
    """
    if is_stream(path):
        with io.BufferedWriter(_Named(_open_stream(path), path)) as file:
            yield file
        return
    target = path.resolve()
    aside = target.with_name(f".llara-{secrets.token_hex(8)}.part")
    try:
        number = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with io.BufferedWriter(_Named(number, path)) as file:
                if target.exists():
                    aside.chmod(stat.S_IMODE(target.stat().st_mode))
                yield file
                file.flush()
                _sync(number, path)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) != aside:
            raise
        raise LlaraError(f"{path}: cannot be written: {error.strerror}") from error


def _sync(number: int, path: Path) -> None:
    try:
        os.fsync(number)
    except OSError as error:  # some network file systems report only now that they are full
        raise LlaraError(f"{path}: cannot be written: {error.strerror}") from error


def _open_stream(path: Path) -> int:
    number = _descriptor(path)
    try:
        if number is None:
            return os.open(path, os.O_WRONLY)
        sys.stdout.flush()
        return os.dup(number)
    except OSError as error:
        raise LlaraError(f"{path}: cannot be written: {error.strerror}") from error
