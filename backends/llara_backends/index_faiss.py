"""Index backend ``faiss``: any index that FAISS's index factory can make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

from llara_backends.index_faiss_training import lists, sample_size, train
from llara_backends.index_settings import REPRODUCIBLE_ROWS, check_parameters, load_options, save_options
from llara_backends.index_vectors import checked_blocks, checked_queries, no_hits, ordered_hits, refuse_width
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import Hits, IndexBackend, IndexOptions, Parameters, VectorBlocks, Vectors
from llara_cli.core.registry import install_hint

INDEX = "index.faiss"
DEFAULT_SPEC = "Flat"
_THEIR_NAMES = {"nprobe": "nprobe", "ef": "efSearch", "ef_construction": "efConstruction"}
_EF_CONSTRUCTION = 200
_LEAST_EF = 128
_PIECE_ROWS = 2048
"""Rows that are checked and copied together, to stay in the cache."""
_PROBE = 10
"""Hits of a trial search that shows the order of an index' scores."""
_ROUNDING = 3e-7
"""Most by which two orders of summation may differ, relative to the product of the vectors' norms."""
_library: Any = faiss
"""FAISS untyped, for what its annotations lack."""
_PLACE = re.compile(r"^Error in .*? at \S+:\d+: ")


class FaissIndex(IndexBackend):
    """``--spec``: ``Flat`` (exact; the default), ``IVF4096,Flat``, ``IVF4096,PQ64``, ``HNSW32``, ``SQ8``, ...

    ``nprobe``: lists of an IVF index to search (default: the square root of their number). ``ef``: candidates in a
    search of an HNSW graph (default: twice the number of hits, at least 128); ``ef_construction``: while building
    (200).
    """

    name = "faiss"
    build_parameters: ClassVar[Mapping[str, type]] = {"nprobe": int, "ef": int, "ef_construction": int}
    search_parameters: ClassVar[Mapping[str, type]] = {"nprobe": int, "ef": int}

    def __init__(self, index: Any, spec: str, parameters: Parameters, device: str) -> None:
        self._index = index
        self._spec = spec
        self._parameters = dict(parameters)
        self._device = device

    @classmethod
    def build(cls, vectors: VectorBlocks, options: IndexOptions) -> FaissIndex:
        """Make the index, train it on a sample if it needs training, and add the stream block by block."""
        spec = options.spec or DEFAULT_SPEC
        check_parameters(options.parameters, cls.build_parameters, cls.name)
        _check_device(options.device)
        index = _made(spec, vectors.dim)
        parameters = {**_default_parameters(index), **options.parameters}
        for name, value in parameters.items():
            _set(index, spec, name, value)
        size = sample_size(index, vectors.count)
        index = _on_device(index, spec, options.device)
        with _few_threads(parameters, vectors.count), _spec_errors(spec, vectors.count):
            train(index, vectors, size)
            _add(index, vectors)
        _refuse_distances(index, spec)
        return cls(index, spec, parameters, options.device)

    def save(self, folder: Path) -> None:
        """Write FAISS's own ``index.faiss`` (no pickle), and ``options.json``."""
        index = self._index if self._device == "cpu" else faiss.index_gpu_to_cpu(self._index)
        with (folder / INDEX).open("wb") as file:  # FAISS does not report that the last bytes did not fit the disk
            try:
                faiss.write_index(index, _library.PyCallbackIOWriter(file.write))
            except RuntimeError as error:
                raise LlaraError(f"{folder / INDEX}: cannot be written: {_reason(error)}") from error
        save_options(folder / INDEX, self._parameters, (self.count, self.dim), self._spec)

    @classmethod
    def load(cls, folder: Path, options: IndexOptions) -> FaissIndex:
        """Read the index into memory; search parameters in the options replace the saved ones."""
        check_parameters(options.parameters, cls.build_parameters, cls.name)
        _check_device(options.device)
        saved = load_options(folder / INDEX)
        try:
            index = faiss.read_index(str(folder / INDEX))
        except RuntimeError as error:
            raise LlaraError(f"{folder / INDEX}: the index is damaged ({_reason(error)}): build it again") from error
        spec = saved.spec or DEFAULT_SPEC
        given = {key: value for key, value in options.parameters.items() if key in cls.search_parameters}
        return cls(_on_device(index, spec, options.device), spec, {**saved.parameters, **given}, options.device)

    def append(self, vectors: VectorBlocks) -> None:
        """Add the stream block by block; what was trained (lists, codes) does not change."""
        refuse_width(vectors, self.dim)
        total = self.count + vectors.count
        with _few_threads(self._parameters, total), _spec_errors(self._spec, total):
            _add(self._index, vectors)

    @property
    def count(self) -> int:
        """Vectors stored."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._index.d)

    @property
    def widening(self) -> Sequence[str]:
        """``nprobe`` of an IVF index, ``ef`` of an HNSW graph."""
        return [name for name in self.search_parameters if _has(self._index, name)]

    def search(self, queries: Vectors, k: int, parameters: Parameters | None = None) -> Hits:
        """FAISS's hits, equal scores by ascending row; compressed vectors have approximate scores."""
        check_parameters(parameters or {}, self.search_parameters, self.name)
        queries = checked_queries(queries, self.dim, k)
        wanted = min(k, self.count)
        for name, value in self._search_settings(wanted, parameters or {}).items():
            _set(self._index, self._spec, name, value)
        if not len(queries):
            return no_hits(k)
        scores, rows = self._index.search(queries, wanted)
        hits = ordered_hits(scores, rows, k)
        return _with_true_ties(self._index, queries, hits) if isinstance(self._index, faiss.IndexHNSWFlat) else hits

    def _search_settings(self, wanted: int, given: Parameters) -> Parameters:
        """All search parameters of the index, so that one search does not affect the next."""
        chosen = {**self._parameters, **given}
        if "ef" not in chosen and _has(self._index, "ef"):
            chosen["ef"] = max(2 * wanted, _LEAST_EF)
        return {name: value for name, value in chosen.items() if name in self.search_parameters}


def _with_true_ties(index: Any, queries: Vectors, hits: Hits) -> Hits:
    """``hits`` with nearly equal scores recomputed, all in the same way, and sorted.

    On some processors FAISS's graphs score four vectors at once with another order of additions than a single one, so
    that scores of equal vectors differ in the last bits.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        best = np.concatenate([norm(part, axis=1) for part in _stored(index, np.maximum(hits.rows[:, 0], 0))])
        rounding = _ROUNDING * norm(queries, axis=1) * best  # the best hit's norm is about that of any
        close = (hits.rows[:, 1:] >= 0) & (hits.scores[:, 1:] >= hits.scores[:, :-1] - rounding[:, None])
        tied = np.zeros(hits.rows.shape, bool)
        tied[:, :-1] |= close
        tied[:, 1:] |= close
        scores = hits.scores.copy()
        for number in np.flatnonzero(tied.any(axis=1)):
            parts = _stored(index, hits.rows[number, tied[number]])
            scores[number, tied[number]] = np.concatenate([(part * queries[number]).sum(axis=1) for part in parts])
    return ordered_hits(scores, hits.rows, hits.rows.shape[1])


def _stored(index: Any, rows: NDArray[np.int64]) -> Iterator[Vectors]:
    """The vectors of ``rows``, in pieces."""
    return (index.reconstruct_batch(rows[at : at + _PIECE_ROWS]) for at in range(0, len(rows), _PIECE_ROWS))


def _made(spec: str, dim: int) -> Any:
    try:
        return faiss.index_factory(dim, spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"FAISS cannot make the spec {spec!r} for width {dim} and inner products: {_reason(error)}; "
            f"specs are such as Flat, SQ8, HNSW32, 'IVF1024,Flat', 'IVF1024,PQ64'"
        ) from error


def _refuse_distances(index: Any, spec: str) -> None:
    """Raise ``UserError`` if an index returns distances, though it was made for inner products."""
    if isinstance(index, faiss.IndexFlat):
        return  # uses the metric it was given; a search would read all of it
    query = np.full((1, index.d), 1 / math.sqrt(index.d), np.float32)
    scores, rows = index.search(query, min(_PROBE, index.ntotal))
    there = scores[rows >= 0]
    if there.size and there[0] < there[-1]:
        raise UserError(f"an index of spec {spec!r} searches by distance, not by inner product: choose another spec")


def _default_parameters(index: Any) -> dict[str, int | float | str]:
    """Defaults in place of FAISS's, which find little: one list of an IVF index, 40 candidates per link of HNSW."""
    found: dict[str, int | float | str] = {}
    if (number := lists(index)) is not None:
        found["nprobe"] = max(1, math.isqrt(number))
    if _has(index, "ef_construction"):
        found["ef_construction"] = _EF_CONSTRUCTION
    return found


def _has(index: Any, name: str) -> bool:
    """Whether an index has a parameter. FAISS shows it only by setting it, so it is 1 afterwards: set it again."""
    try:
        _space(index).set_index_parameter(index, _THEIR_NAMES[name], 1)
    except RuntimeError:
        return False
    return True


def _set(index: Any, spec: str, name: str, value: float | str) -> None:
    try:
        _space(index).set_index_parameter(index, _THEIR_NAMES[name], value)
    except RuntimeError as error:
        there = ", ".join(other for other in _THEIR_NAMES if _has(index, other)) or "none"
        raise UserError(f"an index of spec {spec!r} has no parameter {name!r}; it has: {there}") from error


def _space(index: Any) -> Any:
    on_gpu = hasattr(faiss, "GpuIndex") and isinstance(index, faiss.GpuIndex)
    return faiss.GpuParameterSpace() if on_gpu else faiss.ParameterSpace()


def _add(index: Any, vectors: VectorBlocks) -> None:
    """Add the stream block by block."""
    if isinstance(index, faiss.IndexFlat):
        _fill(index, vectors)
        return
    _make_room(index, vectors.count)
    for block in checked_blocks(vectors):
        index.add(block)


def _fill(index: Any, vectors: VectorBlocks) -> None:
    """Write the stream into a flat index's own memory, piece by piece while a piece is in the cache.

    ``add`` would fill that memory with zeros first.
    """
    row, total = index.ntotal, index.ntotal + vectors.count
    index.codes.resize(total * index.code_size)
    try:
        rows = faiss.rev_swig_ptr(index.get_xb(), total * index.d).reshape(total, index.d)
        for piece in checked_blocks(vectors, _PIECE_ROWS):
            rows[row : row + len(piece)] = piece
            row += len(piece)
        index.ntotal = total
    finally:
        index.codes.resize(index.ntotal * index.code_size)


def _make_room(index: Any, count: int) -> None:
    """Reserve memory for ``count`` more vectors: FAISS, growing step by step, holds them twice at times."""
    flat = faiss.downcast_index(getattr(index, "storage", index))
    if isinstance(flat, faiss.IndexFlatCodes):
        flat.codes.resize((flat.ntotal + count) * flat.code_size)
        flat.codes.resize(flat.ntotal * flat.code_size)


@contextmanager
def _few_threads(parameters: Parameters, count: int) -> Iterator[None]:
    """One thread for a small HNSW graph, even inside another index, so that equal runs give equal files."""
    threads = faiss.omp_get_max_threads()
    alone = count <= REPRODUCIBLE_ROWS and "ef_construction" in parameters
    faiss.omp_set_num_threads(1 if alone else threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


@contextmanager
def _spec_errors(spec: str, count: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"an index of spec {spec!r} cannot be built from {count} vectors: {_reason(error)}; "
            f"a small corpus needs fewer lists or bits, or `spec='Flat'`"
        ) from error


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    if device != "cuda":
        raise UserError(f"unknown device {device!r} for the faiss index: known are cpu, cuda")
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise UserError(
            "device 'cuda': this FAISS has no GPU support, or finds no GPU: "
            f"pip uninstall faiss-cpu, then {install_hint('faiss-gpu')}"
        )


def _on_device(index: Any, spec: str, device: str) -> Any:
    if device == "cpu":
        return index
    try:
        moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError as error:
        raise UserError(f"FAISS cannot put an index of spec {spec!r} on the GPU: {_reason(error)}") from error
    return moved


def _reason(error: RuntimeError) -> str:
    """FAISS's message without the place in its source."""
    return _PLACE.sub("", " ".join(str(error).split()))
