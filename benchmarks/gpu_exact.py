"""Exact search on a device: times of the index beside reading its vectors once, and its hits beside a plain top-k.

Random unit vectors, inner products, the 100 best. On a CPU the index's own way there is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from llara_backends.index_exact import ExactIndex, MappedVectors
from llara_backends.index_exact_gpu import DTYPES, GpuSearch
from llara_cli.core.protocols import Hits, IndexOptions, Vectors

K = 100
COUNTS = (1, 10, 100, 1000)
"""Queries searched together."""
REPEATS = 3
_PIECE_ROWS = 1 << 17
Record = Callable[..., None]
"""Told of a result as soon as it is known: ``record(setting, **figures)``."""


def measure(device: str, rows: int, dim: int, record: Record) -> None:
    """Measure searches in ``rows`` vectors of width ``dim`` held in fp32 and, on CUDA, in fp16 and streamed."""
    there = torch.device(device)
    matrix, queries = unit_vectors(rows, dim, there), unit_vectors(COUNTS[-1], dim, there)
    sweep = Sweep(queries, plain_top_k(matrix, queries, there), there, record)
    held(matrix, sweep)
    if there.type == "cuda":
        streamed(matrix, sweep)
    faiss_flat(matrix, sweep)


@dataclass(frozen=True)
class Sweep:
    """The same queries for everyone who searches. ``expected``: the hits of all."""

    queries: Vectors
    expected: Hits
    device: torch.device
    record: Record

    def run(self, name: str, search: Callable[[Vectors], Hits], floor: float | None = None) -> None:
        """Search for 1, 10, 100 and 1,000 queries. ``floor``: seconds below which no search can be."""
        for count in COUNTS:
            asked = self.queries[:count]
            search(asked)  # warms
            seconds, hits = timed(partial(search, asked), self.device, REPEATS)
            figures = {"ms": seconds * 1e3, **agreement(hits, self.expected)}
            if floor is not None:
                figures |= {"floor_ms": floor * 1e3, "times_floor": seconds / floor}
            self.record(f"{name}, {count} queries", **figures)


def held(matrix: Vectors, sweep: Sweep) -> None:
    """The index as it is used, beside reading its vectors at the rate at which the device copies."""
    on_gpu = sweep.device.type == "cuda"
    source = torch.empty(min(matrix.nbytes, 1 << 30), dtype=torch.uint8, device=sweep.device)
    rate = 2 * copy_rate(source, sweep.device)  # each byte is read and written
    sweep.record("copy on the device", gb_per_second=rate / 1e9)
    index = ExactIndex.build(MappedVectors(matrix), IndexOptions(device=str(sweep.device)))
    for dtype in ("fp32", "fp16") if on_gpu else ("fp32",):
        search = partial(index.search, k=K, parameters={"dtype": dtype})
        seconds, _ = timed(partial(search, sweep.queries[:1]), sweep.device)
        sweep.record(f"{dtype}, first search", seconds=seconds)
        sweep.run(dtype, search, matrix.size * DTYPES[dtype].itemsize / rate)


def streamed(matrix: Vectors, sweep: Sweep) -> None:
    """Searches that find no room on the card, beside copying the vectors there once from pinned memory."""
    source = torch.empty(min(matrix.nbytes, 1 << 28), dtype=torch.uint8, pin_memory=True)
    rate = copy_rate(source, sweep.device)
    sweep.record("copy from the host", gb_per_second=rate / 1e9)
    without_room = GpuSearch(sweep.device, lambda _: None, lambda _: 0)
    search = partial(without_room.search, MappedVectors(matrix), torch.float32, k=K)
    sweep.run("fp32 streamed", search, matrix.nbytes / rate)


def faiss_flat(matrix: Vectors, sweep: Sweep) -> None:
    """FAISS's flat index on the same device, where it is installed for it."""
    if find_spec("faiss") is None:
        sweep.record("faiss Flat", skipped="not installed")
        return
    import faiss

    on_gpu, dim = sweep.device.type == "cuda", matrix.shape[1]
    if on_gpu and not hasattr(faiss, "StandardGpuResources"):
        sweep.record("faiss Flat", skipped="installed without GPU support")
        return
    index: Any = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim) if on_gpu else faiss.IndexFlatIP(dim)
    index.add(matrix)
    sweep.run("faiss Flat", lambda asked: Hits(*index.search(asked, K)))


def agreement(hits: Hits, expected: Hits) -> Mapping[str, float]:
    """Share of the expected rows that are among the hits, and the largest difference of scores in the same place."""
    pairs = list(zip(hits.rows.tolist(), expected.rows.tolist(), strict=False))
    overlap = sum(len(set(found) & set(wanted)) for found, wanted in pairs) / sum(len(wanted) for _, wanted in pairs)
    difference = np.abs(hits.scores[:, : expected.scores.shape[1]] - expected.scores[: len(hits.scores)]).max()
    return {"overlap": overlap, "score_difference": float(difference)}


def unit_vectors(count: int, dim: int, device: torch.device) -> Vectors:
    """(count, dim) random directions, made on the device."""
    matrix = np.empty((count, dim), np.float32)
    generator = torch.Generator(device).manual_seed(count)
    for start in range(0, count, _PIECE_ROWS):
        piece = torch.from_numpy(matrix[start : start + _PIECE_ROWS])
        drawn = torch.randn(piece.shape, generator=generator, device=device)
        piece.copy_(torch.nn.functional.normalize(drawn, dim=1))
    return matrix


def plain_top_k(matrix: Vectors, queries: Vectors, device: torch.device) -> Hits:
    """The definition in plain PyTorch, in float32."""
    asked, k = torch.from_numpy(queries).to(device), min(K, len(matrix))
    scores, rows = (
        torch.empty(len(asked), 0, device=device),
        torch.empty(len(asked), 0, dtype=torch.int64, device=device),
    )
    for start in range(0, len(matrix), _PIECE_ROWS):
        piece = torch.from_numpy(matrix[start : start + _PIECE_ROWS]).to(device)
        scores = torch.cat([scores, asked @ piece.T], dim=1)
        rows = torch.cat([rows, torch.arange(start, start + len(piece), device=device).expand(len(asked), -1)], dim=1)
        scores, best = scores.topk(min(k, scores.shape[1]), dim=1)
        rows = rows.gather(1, best)
    return Hits(scores.cpu().numpy(), rows.cpu().numpy())


def copy_rate(source: torch.Tensor, device: torch.device) -> float:
    """Bytes a second that are copied from the tensor to the device; one on the device itself reads and writes each."""
    target = torch.empty_like(source, device=device)
    target.copy_(source)
    seconds, _ = timed(lambda: target.copy_(source), device, REPEATS)
    return source.nbytes / seconds


def timed(function: Callable[[], Any], device: torch.device, repeats: int = 1) -> tuple[float, Any]:
    """Median seconds until the device has done it, and what the function gave."""
    times = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        value = function()
        _wait(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times)), value


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
