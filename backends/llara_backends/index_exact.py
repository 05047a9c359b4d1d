"""Index backend ``exact``: compares every vector, on CPU or GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from llara_backends.index_exact_gpu import DTYPES, GpuSearch
from llara_backends.index_settings import check_parameters, refuse_spec
from llara_backends.index_topk import best_of, hits_of, keys_of
from llara_backends.index_vectors import Chained, checked_blocks, checked_queries, no_hits, parts, refuse_width
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import Hits, IndexBackend, IndexOptions, Parameters, VectorBlocks, Vectors

VECTORS = "vectors.npy"
_BLOCK_BYTES = 1 << 26
_BLOCK_ROWS = 1 << 14
SCORES_AT_ONCE = 1 << 20
"""Scores per block: with their keys and the block of vectors, about 80 MB."""
_ROW_STEP, _QUERY_STEP = 256, 16
"""Block and query sizes are padded to multiples of these.

For small or odd matrices BLAS uses other kernels, which round differently. With padding, an inner product does not
depend on the vector's row or on the other queries, so duplicates have equal scores.
"""


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
    """Brute force. Vectors are read from the stream that it was built from, or the file that it was loaded from.

    On a GPU they stay there after the first search, in ``dtype``: fp32 (default), fp16 or bf16. If they do not fit its
    memory, every search streams them to it. A CPU searches in fp32, whatever the saved ``dtype``.
    """

    name = "exact"
    build_parameters: ClassVar[Mapping[str, type]] = {"dtype": str}
    search_parameters: ClassVar[Mapping[str, type]] = {"dtype": str}

    def __init__(self, vectors: VectorBlocks, options: IndexOptions) -> None:
        refuse_spec(options.spec, self.name)
        self._vectors = vectors
        self._dtype = _dtype(options.parameters)
        device = _device(options.device)
        self._gpu = GpuSearch(device, options.note) if device.type == "cuda" else None

    @classmethod
    def build(cls, vectors: VectorBlocks, options: IndexOptions) -> ExactIndex:
        """Check the stream, and keep it: ``save`` and searches read it again."""
        index = cls(vectors, options)
        for _ in checked_blocks(vectors):
            pass
        return index

    def save(self, folder: Path) -> None:
        """Stream the vectors into one ``vectors.npy``: float32, C order."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.dim)}
        # Written, not memory-mapped: on a full disk a write is an error, but writing a mapped page kills the process.
        with (folder / VECTORS).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._vectors:
                file.write(np.ascontiguousarray(block, dtype="<f4").data)

    @classmethod
    def load(cls, folder: Path, options: IndexOptions) -> ExactIndex:
        """Memory-map ``vectors.npy``: nothing is read until a search."""
        path = folder / VECTORS
        try:
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise LlaraError(f"{path}: the index is damaged ({error}): build it again") from error
        if matrix.ndim != 2 or matrix.dtype != np.float32 or not matrix.flags.c_contiguous or not matrix.size:
            raise LlaraError(f"{path}: the index is damaged ({matrix.dtype} {matrix.shape}): build it again")
        return cls(MappedVectors(matrix), options)

    def append(self, vectors: VectorBlocks) -> None:
        """Check the stream, and append it."""
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
        """The k nearest, exactly; on a GPU scores are those of queries and vectors rounded to ``dtype``."""
        dtype = _dtype(parameters or {}, self._dtype)
        queries = checked_queries(queries, self.dim, k)
        if not len(queries):
            return no_hits(k)
        if self._gpu is not None:
            return self._gpu.search(self._vectors, DTYPES[dtype], queries, k)
        if parameters and dtype != "fp32":
            raise UserError(f"dtype={dtype} is for device cuda; on the CPU the exact index searches in fp32")
        return _search(self._vectors, queries, k)


def _search(stream: VectorBlocks, queries: Vectors, k: int) -> Hits:
    """The k nearest on the CPU; the vectors are read once, whatever the number of queries."""
    rows = _block_rows(stream.count, stream.dim)
    chunks = list(_query_chunks(queries, rows + min(k, stream.count)))
    best = [torch.empty(len(chunk), 0, dtype=torch.int64) for chunk in chunks]
    for first, filled, block in _equal_blocks(stream, rows):
        vectors = torch.from_numpy(block)
        numbers = torch.arange(first, first + filled)
        for number, chunk in enumerate(chunks):
            scores = (chunk @ vectors.T)[:, :filled]
            best[number] = best_of(torch.cat([best[number], keys_of(scores, numbers)], dim=1), k)
    return hits_of(torch.cat(best)[: len(queries)], k)


def _query_chunks(queries: Vectors, width: int) -> Iterator[torch.Tensor]:
    """(chunk, dim) tensors with a multiple of ``_QUERY_STEP`` queries each, the last padded with zeros."""
    size = max(1, SCORES_AT_ONCE // width // _QUERY_STEP) * _QUERY_STEP
    queries = np.pad(queries, ((0, -len(queries) % _QUERY_STEP), (0, 0)))
    for start in range(0, len(queries), size):
        yield torch.from_numpy(queries[start : start + size])


def _dtype(parameters: Parameters, default: str = "fp32") -> str:
    """The parameter ``dtype``. Raises ``UserError`` for an unknown one, and for other parameters."""
    check_parameters(parameters, ExactIndex.build_parameters, ExactIndex.name)
    dtype = str(parameters.get("dtype", default))
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r} for the exact index: known are {', '.join(DTYPES)}")
    return dtype


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: known are cpu, cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"the exact index runs on cpu and cuda, not on {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': PyTorch finds no usable GPU here; use `device='cpu'`")
    return device


def _block_rows(count: int, dim: int) -> int:
    """Rows per block: as many as fit ``_BLOCK_BYTES``, at most about ``count``; a multiple of ``_ROW_STEP``."""
    rows = min(_BLOCK_BYTES // (4 * dim), _BLOCK_ROWS, count + _ROW_STEP - 1)
    return max(1, rows // _ROW_STEP) * _ROW_STEP


def _equal_blocks(vectors: VectorBlocks, rows: int) -> Iterator[tuple[int, int, Vectors]]:
    """(first row, rows filled, block): the stream in equal blocks, so that scores do not depend on its own blocks.

    Every block is the same buffer, valid until the next; its rows after those filled are undefined.
    """
    buffer = np.zeros((rows, vectors.dim), dtype=np.float32)
    for row, part in parts(vectors, rows):
        at = row % rows
        end = at + len(part)
        buffer[at:end] = part
        if end == rows or row + len(part) == vectors.count:
            yield row - at, end, buffer
