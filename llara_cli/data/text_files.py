"""Bytes and text lines of a user's file, compressed or not; errors name ``file:line``."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llara_cli.core.errors import UserError
from llara_cli.core.registry import missing_extra

COMPRESSIONS = (".gz", ".bz2", ".zst")
Note = Callable[[str], None]
"""Called with a note on a file, for the user."""
_MAGIC = {".gz": b"\x1f\x8b\x08", ".bz2": b"BZh", ".zst": b"\x28\xb5\x2f\xfd"}
"""First bytes of compressed data."""
_BZIP2_BLOCK = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
"""More first bytes of bzip2 data, as a text may begin with ``BZh``."""
_NOT_UTF8 = (
    (re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff"), "UTF-32"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16"),
    (re.compile(rb"[^\0]\0[^\0]\0", re.DOTALL), "UTF-16LE"),
    (re.compile(rb"\0[^\0]\0[^\0]", re.DOTALL), "UTF-16BE"),
)
"""First bytes of text in other encodings, with and without a byte-order mark, as iconv names them."""
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\xfd7zX": "xz data"}
_HEAD = 10
_BLOCK = 1 << 18
_LONGEST_REASON = 300
_DUMP_PART = re.compile(r"-p\d+p\d+$")
"""Wikimedia names the parts of a large dump ``...articles1.xml-p1p41242.bz2``."""


def ignore(message: str) -> None:
    """A ``Note`` that does nothing."""


def kind(path: Path) -> tuple[str, str]:
    """(format, compression) by the file's name, in lower case: ``Corpus.JSONL.gz`` is (".jsonl", ".gz")."""
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return _DUMP_PART.sub("", Path(name.removesuffix(compression)).suffix), compression


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed if they are gzip, bzip2 or zstd data, whatever its name.

    Raises ``UserError`` if it is missing or unreadable, and, while reading, for damaged compressed data.
    """
    check_file(path)
    try:
        with _decompressed(path) as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, error) from error
    except OSError as error:
        # decompressors raise an OSError without a number for damaged data; the system's errors have one
        raise (_broken(path, error) if error.errno is None else unreadable(path, error)) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line of a UTF-8 file with its number, from 1, without its line end.

    A byte-order mark is dropped, also at the start of later lines, as files with one may have been concatenated.

    Lines end at ``\\n`` or ``\\r\\n`` only: JSON may contain Unicode's other line separators.
    """
    with open_bytes(path) as file:
        _refuse_other_text(file.peek(_HEAD)[:4], path)
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n").removesuffix(b"\r")
            yield number, _decoded(line, f"{path}:{number}")


def check_file(path: Path) -> None:
    """Raise ``UserError`` if there is no file at ``path``."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if not path.exists():
        raise UserError(f"no such file: {path}")


def one_line(words: object) -> str:
    """Text of a library or a file for use in a message: printable, on one line, shortened."""
    text = " ".join("".join(mark if mark.isprintable() else " " for mark in str(words)).split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be read."""
    return UserError(f"{path}: cannot be read: {error.strerror}")


def _refuse_other_text(head: bytes, path: Path) -> None:
    """Raise ``UserError`` for a file whose first bytes show that it is not UTF-8."""
    encoding = next((name for begins, name in _NOT_UTF8 if begins.match(head)), None)
    if encoding is not None:
        raise UserError(f"{path}: {encoding}, not UTF-8: convert the file: iconv -f {encoding} -t UTF-8")
    if head in _ARCHIVES:
        raise UserError(f"{path}: {_ARCHIVES[head]}, not text: unpack it first")


def _broken(path: Path, error: Exception) -> UserError:
    head, named = _head(path), kind(path)[1]
    found = _compression(head)
    if named and not found and head and not head.startswith(_MAGIC[named]) and not _MAGIC[named].startswith(head):
        return UserError(
            f"{path}: not {named} data, whatever its name says: rename it without {named} if it is plain text, "
            "else download it again"
        )
    compression = found or named or "compressed"
    return UserError(f"{path}: broken or cut-off {compression} data ({one_line(error)}): copy or download it again")


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; of a pipe, none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD)


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02X} at byte {error.start + 1} of the line): "
            f"convert the file, for example: iconv -f LATIN1 -t UTF-8"
        ) from error


@contextmanager
def _decompressed(path: Path) -> Iterator[io.BufferedReader]:
    with _buffered(io.FileIO(path)) as file:
        match _compression(file.peek(_HEAD)[:_HEAD]) or kind(path)[1]:
            case ".gz":
                yield _buffered(gzip.GzipFile(fileobj=file))
            case ".bz2":
                yield _buffered(bz2.BZ2File(file))
            case ".zst":
                yield _buffered(_ZstdReader(file))
            case _:
                yield file


def _buffered(raw: Any) -> io.BufferedReader:
    return io.BufferedReader(raw, _BLOCK)


def _compression(head: bytes) -> str:
    """The compression of data by their first bytes, as a file ending; "" for none."""
    if head.startswith(_MAGIC[".bz2"]):
        return ".bz2" if _BZIP2_BLOCK.match(head) else ""
    return next((ending for ending, magic in _MAGIC.items() if head.startswith(magic)), "")


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a .zst file; ``zstandard``'s own reader does not notice a truncated file."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise missing_extra("zstandard, which reads .zst files,", "zstd") from error
        self._file = file
        self._fault: type[Exception] = zstandard.ZstdError
        # Files made with `zstd --long=31` need a window this large.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame = self._decompressor.decompressobj()
        self._inside = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with the next bytes; 0 at the end. Raises ``EOFError`` if that is inside a frame."""
        while not self._ready:
            block = self._file.read(1 << 16)
            if not block:
                if self._inside:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._ready = memoryview(self._feed(block))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _feed(self, block: bytes) -> bytes:
        """Decompress a block, which may hold the end of one frame and the start of others."""
        parts = []
        while block:
            try:
                parts.append(self._frame.decompress(block))
            except self._fault as error:
                raise OSError(str(error)) from error
            block = b""
            self._inside = not self._frame.eof
            if self._frame.eof:
                block = self._frame.unused_data
                self._frame = self._decompressor.decompressobj()
        return b"".join(parts)


def first_of(items: Sequence[str], most: int) -> str:
    """``a, b, c and 7 more``, with at most ``most`` items."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
