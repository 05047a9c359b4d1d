"""The exact index on a GPU: vectors that stay there, or that each search streams to it.

Only the asynchronous copies need CUDA, so everything here runs on a CPU too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.dlpack import from_dlpack

from llara_backends.index_topk import LARGEST_GROUP, best_of, best_of_scores, hits_of, keys_held
from llara_backends.index_vectors import parts
from llara_cli.core.errors import is_out_of_memory
from llara_cli.core.protocols import Hits, VectorBlocks, Vectors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BLOCK_ROWS = 1 << 17
"""Fewest vectors per block: with fewer, launching kernels takes longer than reading the vectors."""
CELLS = 1 << 28
"""Most memory for scores and keys, in float32 numbers: 1 GiB."""
_KEY_CELLS = 6
"""float32 numbers per int64 key, with what it is made from and top-k's copies."""
TRANSFER_BYTES = 1 << 28
"""Most bytes of a streamed block: enough for the full rate of the bus."""
ROOM = 2 << 30
"""Bytes that a search needs besides the vectors: ``CELLS``, two streamed blocks, the libraries' own."""


def choose(free: int, count: int, dim: int, itemsize: int) -> Literal["resident", "streamed"]:
    """Whether ``count`` vectors of ``dim`` numbers of ``itemsize`` bytes fit ``free`` bytes and leave ``ROOM``."""
    return "resident" if _padded(count) * dim * itemsize + ROOM <= free else "streamed"


def free_bytes(device: torch.device) -> int:
    """Free bytes of a GPU's memory, including what PyTorch's allocator holds unused."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


@dataclass(frozen=True)
class Block:
    """Neighbouring vectors on the device.

    ``vectors``: (rows, dim), from row ``first`` of the index. Only those from ``start`` to ``stop`` count: earlier ones
    were in the block before, later ones are undefined. All blocks have equally many rows, so that one kernel multiplies
    all, and equal vectors have equal scores.
    """

    vectors: torch.Tensor
    first: int
    start: int
    stop: int


class Streamed:
    """Vectors on the host; each search copies them to the device, one block while another is searched."""

    def __init__(self, vectors: VectorBlocks, dtype: torch.dtype, device: torch.device) -> None:
        self.count, self.dim = vectors.count, vectors.dim
        self.dtype, self.device = dtype, device
        self._vectors = vectors

    def blocks(self, rows: int) -> Iterator[Block]:
        """Blocks of at most ``rows`` and ``TRANSFER_BYTES``, valid until the next but one."""
        rows = min(rows, TRANSFER_BYTES // (self.dim * self.dtype.itemsize), _padded(self.count))
        rows = max(rows // LARGEST_GROUP, 1) * LARGEST_GROUP
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        slots = [_Slot((rows, self.dim), self.dtype, self.device, stream) for _ in range(2)]
        for row, part in parts(self._vectors, rows):
            slot, at = slots[row // rows % 2], row % rows
            end = at + len(part)
            if not at:
                slot.wait()
            slot.host[at:end].copy_(from_dlpack(part))  # unlike from_numpy, it accepts read-only arrays
            if end == rows or row + len(part) == self.count:
                yield Block(slot.sent(), row - at, 0, end)
                slot.searched()


class _Slot:
    """A block in pinned memory and on the device; on CUDA it is copied in ``stream`` during the search."""

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, stream: torch.cuda.Stream | None
    ) -> None:
        self.host = torch.zeros(shape, dtype=dtype, pin_memory=stream is not None)
        self._there = torch.zeros(shape, dtype=dtype, device=device)
        self._stream = stream
        if stream is not None:
            self._searching = torch.cuda.current_stream(device)
            self._copied, self._free = torch.cuda.Event(), torch.cuda.Event()
            self._free.record(self._searching)

    def wait(self) -> None:
        """Wait until ``host`` has been copied and may be written."""
        if self._stream is not None:
            self._copied.synchronize()

    def sent(self) -> torch.Tensor:
        """The block on the device; operations on it wait for the copy."""
        if self._stream is None:
            return self._there.copy_(self.host)
        self._stream.wait_event(self._free)
        with torch.cuda.stream(self._stream):
            self._there.copy_(self.host, non_blocking=True)
        self._copied.record(self._stream)
        self._searching.wait_event(self._copied)
        return self._there

    def searched(self) -> None:
        """Record that all operations on the block are queued: the next copy waits for them."""
        if self._stream is not None:
            self._free.record(self._searching)


class Resident:
    """Vectors on the device, padded with zeros to a multiple of ``LARGEST_GROUP``."""

    def __init__(self, vectors: VectorBlocks, dtype: torch.dtype, device: torch.device) -> None:
        self.count, self.dim = vectors.count, vectors.dim
        self.dtype, self.device = dtype, device
        self._matrix = torch.empty(_padded(self.count), self.dim, dtype=dtype, device=device)
        self._matrix[self.count :] = 0
        for block in Streamed(vectors, dtype, device).blocks(BLOCK_ROWS):
            self._matrix[block.first : block.first + block.stop] = block.vectors[: block.stop]

    def blocks(self, rows: int) -> Iterator[Block]:
        """Blocks of at most ``rows``, a multiple of ``LARGEST_GROUP``; the last overlaps the one before."""
        total = len(self._matrix)
        rows = _padded(-(-total // -(-total // rows)))
        for seen in range(0, total, rows):
            first = min(seen, total - rows)
            yield Block(self._matrix[first : first + rows], first, seen - first, min(rows, self.count - first))


def place(
    vectors: VectorBlocks, dtype: torch.dtype, device: torch.device, free: int, note: Callable[[str], None]
) -> Resident | Streamed:
    """Put the vectors on the device if they fit its ``free`` bytes; else ``note`` is called."""
    if choose(free, vectors.count, vectors.dim, dtype.itemsize) == "resident":
        try:
            return Resident(vectors, dtype, device)
        except RuntimeError as error:  # another process took the memory meanwhile
            if not is_out_of_memory(error):
                raise
    taken = vectors.count * vectors.dim * dtype.itemsize / 1e9
    advice = "; dtype=fp16 needs half" if dtype == torch.float32 else ""
    note(f"the index's vectors ({taken:.1f} GB) do not fit the free GPU memory: each search copies them again{advice}")
    return Streamed(vectors, dtype, device)


class GpuSearch:
    """Searches on a device; vectors stay there for the next search of the same stream."""

    def __init__(
        self, device: torch.device, note: Callable[[str], None], free: Callable[[torch.device], int] = free_bytes
    ) -> None:
        self._device, self._note, self._free = device, note, free
        self._placed: tuple[VectorBlocks, Resident | Streamed] | None = None

    def search(self, vectors: VectorBlocks, dtype: torch.dtype, queries: Vectors, k: int) -> Hits:
        """The k nearest to each query (queries, dim), all numbers rounded to ``dtype``, scores in float32."""
        return search(self._place(vectors, dtype), queries, k)

    def _place(self, vectors: VectorBlocks, dtype: torch.dtype) -> Resident | Streamed:
        if self._placed is None or self._placed[0] is not vectors or self._placed[1].dtype != dtype:
            self._placed = None  # frees its memory
            free = self._free(self._device)
            self._placed = vectors, place(vectors, dtype, self._device, free, self._note)
        return self._placed[1]


def search(vectors: Resident | Streamed, queries: Vectors, k: int, rows: int = BLOCK_ROWS, cells: int = CELLS) -> Hits:
    """The k nearest to each query: (queries, dim), at least one.

    ``rows``, a multiple of ``LARGEST_GROUP``, and ``cells`` bound the memory: see ``shape_of_scores``.
    """
    wanted = min(k, vectors.count)
    size, rows = shape_of_scores(len(queries), wanted, rows, cells)
    chunks = from_dlpack(queries).to(vectors.device, vectors.dtype).split(size)
    best = [torch.empty(len(chunk), 0, dtype=torch.int64, device=vectors.device) for chunk in chunks]
    with _no_tf32():
        for block in vectors.blocks(rows):
            for number, chunk in enumerate(chunks):
                scores = _products(chunk, block.vectors)
                scores[:, block.stop :] = -torch.inf
                found = best_of_scores(scores[:, block.start :], block.first + block.start, wanted)
                best[number] = best_of(torch.cat([best[number], found], dim=1), wanted)
    return hits_of(torch.cat(best), k)


def shape_of_scores(queries: int, k: int, rows: int, cells: int) -> tuple[int, int]:
    """(queries, vectors) per matmul, so that scores and keys take about ``cells`` numbers.

    All queries, if they fit with ``rows`` vectors; with few queries, more vectors (a multiple of ``rows``). At least
    one query and ``rows`` vectors.
    """
    each = rows + _KEY_CELLS * (keys_held(rows, k) + 2 * k)
    size = min(queries, max(1, cells // each))
    return size, rows * max(1, cells // (each * size))


def _products(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """(queries, vectors) float32 inner products, accumulated in float32."""
    if vectors.dtype == torch.float32:
        return queries @ vectors.T
    if vectors.is_cuda:
        return torch.mm(queries, vectors.T, out_dtype=torch.float32)
    return queries.float() @ vectors.float().T


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Float32 matmuls without TF32, whatever the program's own setting."""
    before, older = torch.backends.cuda.matmul.fp32_precision, _older_precision()
    if older is not None:
        torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        torch.backends.cuda.matmul.fp32_precision = before


def _older_precision() -> str | None:
    """PyTorch's older setting; None if the program has set the newer one to another value.

    PyTorch raises if the two contradict each other.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _padded(count: int) -> int:
    """``count``, rounded up to a multiple of ``LARGEST_GROUP``."""
    return -(-count // LARGEST_GROUP) * LARGEST_GROUP
