"""Shared by all index backends: checks of vectors and queries, and the order of hits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.errors import UserError
from llara_cli.core.protocols import Hits, VectorBlocks, Vectors


def checked_blocks(vectors: VectorBlocks, rows: int | None = None) -> Iterator[Vectors]:
    """The blocks of a stream, C order, float32; in pieces of at most ``rows`` rows, if given.

    Raises ``UserError`` for a block of another width, for NaN or infinity, for an empty stream, and at the end if the
    number of vectors is not the announced one.
    """
    row = 0
    for block in _pieces(vectors, rows):
        block = _finite(_of_width(block, vectors.dim, "vectors"), row)
        row += len(block)
        if row > vectors.count:
            break
        yield block
    if row != vectors.count:
        raise UserError(f"{vectors.count} vectors were announced, but {row} (or more) came: encode the corpus again")
    if not row:
        raise UserError("there are no vectors to index")


def _pieces(vectors: VectorBlocks, rows: int | None) -> Iterator[Vectors]:
    for block in vectors:
        step = rows or len(block) or 1
        yield from (block[at : at + step] for at in range(0, len(block), step))


def parts(vectors: VectorBlocks, rows: int) -> Iterator[tuple[int, Vectors]]:
    """(first row, part): the stream's blocks, cut at every multiple of ``rows``."""
    row = 0
    for block in vectors:
        while len(block):
            part = block[: rows - row % rows]
            yield row, part
            row, block = row + len(part), block[len(part) :]


def refuse_width(vectors: VectorBlocks, dim: int) -> None:
    """Raise ``UserError`` if a stream has another width."""
    if vectors.dim != dim:
        raise UserError(f"vectors of width {vectors.dim}, but the index is of width {dim}")


@dataclass(frozen=True)
class Chained:
    """Two streams of the same width, one after the other."""

    first: VectorBlocks
    second: VectorBlocks

    @property
    def count(self) -> int:
        """Rows of both."""
        return self.first.count + self.second.count

    @property
    def dim(self) -> int:
        """Columns."""
        return self.first.dim

    def __iter__(self) -> Iterator[Vectors]:
        yield from self.first
        yield from self.second


def checked_queries(queries: Vectors, dim: int, k: int) -> Vectors:
    """The queries, C order, float32. Raises ``UserError`` for another width, NaN or infinity, and where ``k`` < 1."""
    if k < 1:
        raise UserError(f"the number of hits must be positive, not {k}")
    return _finite(_of_width(queries, dim, "queries"), 0, "query")


def no_hits(k: int) -> Hits:
    """Hits of zero queries."""
    return Hits(np.empty((0, k), np.float32), np.empty((0, k), np.int64))


def ordered_hits(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Hits:
    """``Hits`` from a library's (queries, found) scores and rows in any order; row -1 means no hit."""
    scores = np.where(rows < 0, np.float32(-np.inf), scores)
    order = np.lexsort((rows, -scores), axis=-1)
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return padded_hits(scores, rows, k)


def padded_hits(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Hits:
    """``Hits`` of sorted scores and rows, padded to ``k``."""
    missing = ((0, 0), (0, max(0, k - rows.shape[1])))
    return Hits(np.pad(scores, missing, constant_values=-np.inf), np.pad(rows, missing, constant_values=-1))


def _of_width(vectors: Vectors, dim: int, what: str) -> Vectors:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        shape = " x ".join(str(size) for size in vectors.shape)
        raise UserError(f"{what} of width {vectors.shape[-1]} (shape {shape}), but the index is of width {dim}")
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _finite(vectors: Vectors, first_row: int, what: str = "vector") -> Vectors:
    # The sum of squares is NaN or infinite if a number is; only if it is (or has overflowed) is each number
    # looked at.
    flat = vectors.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(np.vdot(flat, flat))
    if suspicious:
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(f"{what} {first_row + int(bad[0])} (counted from 0) holds NaN or infinity")
    return vectors
