"""Ids on disk, one per line, with random access: eight bytes of memory each, whatever their length."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.errors import LlaraError
from llara_cli.data.text_files import one_line

PIECE = 1 << 24
_LINE_FEED = 10


class Ids(Sequence[str]):
    """Ids by row, read when needed; a subclass implements ``__len__`` and ``read``."""

    @abstractmethod
    def read(self, row: int) -> str:
        """The id of an existing row."""

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        rows = range(len(self))[number]
        return self.read(rows) if isinstance(rows, int) else [self.read(row) for row in rows]


class IdList(Ids):
    """The lines of a memory-mapped UTF-8 file."""

    def __init__(self, path: Path) -> None:
        """Raises ``LlaraError`` if there is no such file."""
        self._path = path
        try:
            size = path.stat().st_size
            self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        except OSError as error:
            raise self._damage(error) from error
        pieces = (self._bytes[at : at + PIECE] for at in range(0, size, PIECE))
        found = [np.flatnonzero(piece == _LINE_FEED) + n * PIECE for n, piece in enumerate(pieces)]
        self._ends = np.concatenate(found) if found else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, row: int) -> str:
        start = self._ends[row - 1] + 1 if row else 0
        return self._decoded(self._bytes[start : self._ends[row]].tobytes())

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            for line in file:
                yield self._decoded(line.removesuffix(b"\n"))

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise self._damage(error) from error

    def _damage(self, error: Exception) -> LlaraError:
        return LlaraError(f"{self._path}: missing or damaged: {one_line(error)}")


class Joined(Ids):
    """Several sequences of ids, concatenated without copying."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, row: int) -> str:
        part, place = self.place(row)
        return self._parts[part][place]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)

    def place(self, row: int) -> tuple[int, int]:
        """The number of the part that has a row, and the row in it."""
        part = bisect_right(self._starts, row) - 1
        return part, row - self._starts[part]
