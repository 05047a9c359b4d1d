"""Ids on disk, one a line, with random access: eight bytes of memory each, whatever their length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 24
_LINE_FEED = 10


class IdList(Sequence[str]):
    """The lines of a UTF-8 file, mapped into memory and read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        pieces = (self._bytes[at : at + _PIECE] for at in range(0, size, _PIECE))
        found = [np.flatnonzero(piece == _LINE_FEED) + n * _PIECE for n, piece in enumerate(pieces)]
        self._ends = np.concatenate(found) if found else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        start = self._ends[place - 1] + 1 if place else 0
        return self._bytes[start : self._ends[place]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        with self._path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line[:-1]
