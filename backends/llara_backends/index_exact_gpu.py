"""The exact index on a GPU: vectors that stay on the card, or that each search streams to it.

Nothing here needs CUDA but the copies beside the search, so that all of it runs on a CPU too.
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
"""Vectors that are looked at together, at least: fewer, and starting the kernels takes longer than reading them."""
CELLS = 1 << 28
"""float32 numbers that scores and keys may take: 1 GiB."""
_KEY_CELLS = 6
"""Those of one int64 key, of what it is made from and of what top-k makes of it."""
TRANSFER_BYTES = 1 << 28
"""Of a block that is streamed, at most: enough for the full rate of the bus."""
ROOM = 2 << 30
"""Bytes that a search needs beside the vectors: ``CELLS``, two blocks on their way, what the libraries take."""


def choose(free: int, count: int, dim: int, itemsize: int) -> Literal["resident", "streamed"]:
    """Whether ``count`` vectors of ``dim`` numbers of ``itemsize`` bytes fit ``free`` bytes and leave ``ROOM``."""
    return "resident" if _padded(count) * dim * itemsize + ROOM <= free else "streamed"


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU's memory that nobody uses; what PyTorch keeps for later tensors is among them."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


@dataclass(frozen=True)
class Block:
    """Neighbouring vectors on the device.

    ``vectors``: (rows, dim); number ``first`` of the index comes first. Those from ``start`` up to ``stop`` count: what
    is before was in the block before, what is behind means nothing. Every block of a walk has equally many rows, so
    that all are multiplied by the same kernel and equal vectors have equal scores.
    """

    vectors: torch.Tensor
    first: int
    start: int
    stop: int


class Streamed:
    """Vectors that stay where they are; each walk copies them to the device, one block while another is searched."""

    def __init__(self, vectors: VectorBlocks, dtype: torch.dtype, device: torch.device) -> None:
        self.count, self.dim = vectors.count, vectors.dim
        self.dtype, self.device = dtype, device
        self._vectors = vectors

    def blocks(self, rows: int) -> Iterator[Block]:
        """Blocks of at most ``rows`` and ``TRANSFER_BYTES``, good until the next but one."""
        rows = min(rows, TRANSFER_BYTES // (self.dim * self.dtype.itemsize), _padded(self.count))
        rows = max(rows // LARGEST_GROUP, 1) * LARGEST_GROUP
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        slots = [_Slot((rows, self.dim), self.dtype, self.device, stream) for _ in range(2)]
        for row, part in parts(self._vectors, rows):
            slot, at = slots[row // rows % 2], row % rows
            end = at + len(part)
            if not at:
                slot.wait()
            slot.host[at:end].copy_(from_dlpack(part))  # unlike from_numpy, it takes what must not be written
            if end == rows or row + len(part) == self.count:
                yield Block(slot.sent(), row - at, 0, end)
                slot.searched()


class _Slot:
    """A block on the host, pinned, and on the device; on CUDA it is copied in ``stream``, beside the search."""

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
        """Until ``host`` has been copied and may be written."""
        if self._stream is not None:
            self._copied.synchronize()

    def sent(self) -> torch.Tensor:
        """The block on the device. What is done with it starts when the copy is there."""
        if self._stream is None:
            return self._there.copy_(self.host)
        self._stream.wait_event(self._free)
        with torch.cuda.stream(self._stream):
            self._there.copy_(self.host, non_blocking=True)
        self._copied.record(self._stream)
        self._searching.wait_event(self._copied)
        return self._there

    def searched(self) -> None:
        """All that is to be done with the block is under way: what comes next may take its place after that."""
        if self._stream is not None:
            self._free.record(self._searching)


class Resident:
    """Vectors that lie on the device, filled up with zeros to a multiple of ``LARGEST_GROUP``."""

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
    """Put the vectors on the device where they fit its ``free`` bytes; ``note`` is told where they do not."""
    if choose(free, vectors.count, vectors.dim, dtype.itemsize) == "resident":
        try:
            return Resident(vectors, dtype, device)
        except RuntimeError as error:  # somebody else took the memory meanwhile
            if not is_out_of_memory(error):
                raise
    taken = vectors.count * vectors.dim * dtype.itemsize / 1e9
    advice = "; dtype=fp16 takes half" if dtype == torch.float32 else ""
    note(f"the index's vectors ({taken:.1f} GB) do not fit the GPU's free memory: every search reads them anew{advice}")
    return Streamed(vectors, dtype, device)


class GpuSearch:
    """Searches on a device; what is there of a stream of vectors stays for the next search of the same stream."""

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
            self._placed = None  # its memory is needed
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
    """(queries, vectors) that are multiplied together, so that scores and keys take about ``cells`` numbers.

    All queries where they can be had with ``rows`` vectors; the fewer they are, the more vectors (a multiple of
    ``rows``). At least one query and ``rows`` vectors.
    """
    each = rows + _KEY_CELLS * (keys_held(rows, k) + 2 * k)
    size = min(queries, max(1, cells // each))
    return size, rows * max(1, cells // (each * size))


def _products(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """(queries, vectors) float32 inner products, summed up in float32."""
    if vectors.dtype == torch.float32:
        return queries @ vectors.T
    if vectors.is_cuda:
        return torch.mm(queries, vectors.T, out_dtype=torch.float32)
    return queries.float() @ vectors.float().T


@contextmanager
def _no_tf32() -> Iterator[None]:
    """float32 products in float32, whatever the program allows elsewhere."""
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
    """What PyTorch's older setting says; None where the program has said something else in the newer one.

    A product raises where the two contradict each other.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _padded(count: int) -> int:
    """``count``, rounded up to a multiple of ``LARGEST_GROUP``."""
    return -(-count // LARGEST_GROUP) * LARGEST_GROUP
