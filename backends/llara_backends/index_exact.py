"""Index backend ``exact``: every vector is looked at, on CPU or GPU, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llara_backends.index_settings import check_parameters, refuse_spec
from llara_backends.index_vectors import Chained, checked_blocks, checked_queries, no_hits, padded_hits, refuse_width
from llara_cli.console import LlaraError, UserError
from llara_cli.protocols import Hits, IndexBackend, IndexOptions, Parameters, VectorBlocks, Vectors

VECTORS = "vectors.npy"
_BLOCK_BYTES = 1 << 26
_BLOCK_ROWS = 1 << 14
_CELLS = 1 << 20
"""Scores looked at together: with the keys made of them and the block of vectors, about 80 MB."""
_ROW_STEP, _QUERY_STEP = 256, 16
"""Block and query sizes are padded to multiples of these.

BLAS takes other kernels, which round otherwise, for small or odd matrices. In full ones an inner product comes out the
same wherever its vector lies and whatever is searched with it, so duplicates score the same and ties are ties.
"""
_LAST_ROW = (1 << 32) - 1


@dataclass(frozen=True)
class MappedVectors:
    """A stream over one matrix that may be larger than memory."""

    matrix: Vectors

    @property
    def count(self) -> int:
        """Rows of the matrix."""
        return int(self.matrix.shape[0])

    @property
    def dim(self) -> int:
        """Columns of the matrix."""
        return int(self.matrix.shape[1])

    def __iter__(self) -> Iterator[Vectors]:
        for start in range(0, self.count, _BLOCK_ROWS):
            yield self.matrix[start : start + _BLOCK_ROWS]


class ExactIndex(IndexBackend):
    """Brute force. It holds no vectors: it walks the stream it was built from, or the file it was loaded from."""

    name = "exact"

    def __init__(self, vectors: VectorBlocks, device: torch.device) -> None:
        self._vectors = vectors
        self._device = device

    @classmethod
    def build(cls, vectors: VectorBlocks, options: IndexOptions) -> ExactIndex:
        """Check the stream, once, from end to end; it is kept, and walked again by every search and by ``save``."""
        refuse_spec(options.spec, cls.name)
        check_parameters(options.parameters, cls.build_parameters, cls.name)
        device = _device(options.device)
        for _ in checked_blocks(vectors):
            pass
        return cls(vectors, device)

    def save(self, folder: Path) -> None:
        """Stream the vectors into one ``vectors.npy``: float32, C order."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.dim)}
        # Written, not memory-mapped: on a full disk a write is an error, but a mapped page ends the process.
        with (folder / VECTORS).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._vectors:
                file.write(np.ascontiguousarray(block, dtype="<f4").data)

    @classmethod
    def load(cls, folder: Path, options: IndexOptions) -> ExactIndex:
        """Map ``vectors.npy``: nothing is read until a search."""
        path = folder / VECTORS
        try:
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise LlaraError(f"{path}: the index is damaged ({error}): build it again") from error
        if matrix.ndim != 2 or matrix.dtype != np.float32 or not matrix.flags.c_contiguous or not matrix.size:
            raise LlaraError(f"{path}: the index is damaged ({matrix.dtype} {matrix.shape}): build it again")
        return cls(MappedVectors(matrix), _device(options.device))

    def append(self, vectors: VectorBlocks) -> None:
        """Check the stream and keep it behind what is there."""
        refuse_width(vectors, self.dim)
        for _ in checked_blocks(vectors):
            pass
        self._vectors = Chained(self._vectors, vectors)

    @property
    def count(self) -> int:
        """Vectors stored."""
        return self._vectors.count

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._vectors.dim

    def search(self, queries: Vectors, k: int, parameters: Parameters | None = None) -> Hits:
        """The k nearest, exactly; the vectors are walked once, whatever the number of queries."""
        check_parameters(parameters or {}, self.search_parameters, self.name)
        queries = checked_queries(queries, self.dim, k)
        if not len(queries):
            return no_hits(k)
        rows = _block_rows(self.count, self.dim)
        chunks = list(self._query_chunks(queries, rows + min(k, self.count)))
        best = [torch.empty(len(chunk), 0, dtype=torch.int64, device=self._device) for chunk in chunks]
        for first, filled, block in _equal_blocks(self._vectors, rows):
            vectors = torch.from_numpy(block).to(self._device)
            for number, chunk in enumerate(chunks):
                scores = (chunk @ vectors.T)[:, :filled]
                best[number] = _best(torch.cat([best[number], _keys(scores, first)], dim=1), k)
        return _hits(torch.cat(best)[: len(queries)], k)

    def _query_chunks(self, queries: Vectors, width: int) -> Iterator[torch.Tensor]:
        """(chunk, dim) tensors, each of a multiple of ``_QUERY_STEP`` queries, the last filled up with zeros."""
        size = max(1, _CELLS // width // _QUERY_STEP) * _QUERY_STEP
        queries = np.pad(queries, ((0, -len(queries) % _QUERY_STEP), (0, 0)))
        for start in range(0, len(queries), size):
            yield torch.from_numpy(queries[start : start + size]).to(self._device)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: known are cpu, cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"the exact index runs on cpu and cuda, not on {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': PyTorch finds no usable GPU here; use --device cpu")
    return device


def _block_rows(count: int, dim: int) -> int:
    """Rows of a block: what fits ``_BLOCK_BYTES``, but not more than there are; a multiple of ``_ROW_STEP``."""
    rows = min(_BLOCK_BYTES // (4 * dim), _BLOCK_ROWS, count + _ROW_STEP - 1)
    return max(1, rows // _ROW_STEP) * _ROW_STEP


def _equal_blocks(vectors: VectorBlocks, rows: int) -> Iterator[tuple[int, int, Vectors]]:
    """(first row, rows filled, block): the stream cut anew, so that scores do not depend on how it was cut.

    Every block is the same buffer, good until the next; what stands in the last after ``filled`` rows means nothing.
    """
    buffer = np.zeros((rows, vectors.dim), dtype=np.float32)
    first = filled = 0
    for block in vectors:
        while len(block):
            taken = block[: rows - filled]
            buffer[filled : filled + len(taken)] = taken
            block, filled = block[len(taken) :], filled + len(taken)
            if filled == rows:
                yield first, filled, buffer
                first, filled = first + rows, 0
    if filled:
        yield first, filled, buffer


def _keys(scores: torch.Tensor, first_row: int) -> torch.Tensor:
    """(queries, rows) int64 keys that fall in the order wanted: by falling score, then by rising row.

    No two keys are equal, so top-k, which leaves open which of equal numbers it takes, has nothing to choose. The
    scores are used up.
    """
    rows = torch.arange(first_row, first_row + scores.shape[1], device=scores.device)
    # Adding 0 makes -0.0 a 0.0: they are equal, but their bits are not. In place: these are the largest tensors here.
    keys = _flipped(scores.add_(0.0).view(torch.int32)).to(torch.int64)
    return keys.bitwise_left_shift_(32).add_(_LAST_ROW - rows)


def _flipped(bits: torch.Tensor) -> torch.Tensor:
    """Bits of floats as whole numbers of the same order, and back: negative floats have theirs the wrong way round."""
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def _best(keys: torch.Tensor, k: int) -> torch.Tensor:
    return keys.topk(min(k, keys.shape[1]), dim=1, sorted=False).values


def _hits(keys: torch.Tensor, k: int) -> Hits:
    keys = keys.sort(dim=1, descending=True).values
    scores = _flipped((keys >> 32).to(torch.int32)).view(torch.float32)
    rows = _LAST_ROW - (keys & _LAST_ROW)
    return padded_hits(scores.cpu().numpy(), rows.cpu().numpy(), k)
