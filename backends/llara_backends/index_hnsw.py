"""Index backend ``hnsw``: hnswlib's graph; fast, approximate, on CPU."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hnswlib
import numpy as np

from llara_backends.index_exact import ExactIndex
from llara_backends.index_settings import (
    REPRODUCIBLE_ROWS,
    check_parameters,
    load_options,
    refuse_spec,
    save_options,
)
from llara_backends.index_vectors import checked_blocks, checked_queries, no_hits, ordered_hits, refuse_width
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import Hits, IndexBackend, IndexOptions, Parameters, VectorBlocks, Vectors

INDEX = "index.bin"
_DEFAULTS: dict[str, int | float | str] = {"M": 32, "ef_construction": 200, "seed": 100}
_LEAST_EF = 128
_ALL_CORES = -1
_PIECE_ROWS = 1024
"""Vectors linked between two checks for an interrupt: about a second's work."""


class HnswIndex(IndexBackend):
    """``M`` links per vector, ``ef_construction`` and ``ef`` candidates while building and searching.

    ``ef`` defaults to twice the number of hits, at least 128. ``threads``: for building (default: one up to 20,000
    vectors, then all cores); only with one thread do equal runs give equal files.
    """

    name = "hnsw"
    build_parameters: ClassVar[Mapping[str, type]] = {
        "M": int,
        "ef_construction": int,
        "seed": int,
        "threads": int,
        "ef": int,
    }
    search_parameters: ClassVar[Mapping[str, type]] = {"ef": int}

    def __init__(self, graph: Any, parameters: Parameters) -> None:
        self._graph = graph
        self._parameters = dict(parameters)

    @classmethod
    def build(cls, vectors: VectorBlocks, options: IndexOptions) -> HnswIndex:
        """Build the graph from the stream, block by block."""
        refuse_spec(options.spec, cls.name)
        _refuse_gpu(options.device)
        check_parameters(options.parameters, cls.build_parameters, cls.name)
        parameters = {**_DEFAULTS, **options.parameters}
        graph = hnswlib.Index("ip", vectors.dim)
        graph.init_index(
            vectors.count,
            M=parameters["M"],
            ef_construction=parameters["ef_construction"],
            random_seed=parameters["seed"],
        )
        index = cls(graph, parameters)
        index._link(vectors)
        return index

    def _link(self, vectors: VectorBlocks) -> None:
        """Add a stream that fits the graph's capacity."""
        row = self.count
        few = row + vectors.count <= REPRODUCIBLE_ROWS
        threads = self._parameters.get("threads", 1 if few else _ALL_CORES)
        for block in checked_blocks(vectors, _PIECE_ROWS):
            self._graph.add_items(block, np.arange(row, row + len(block)), num_threads=threads)
            row += len(block)

    def save(self, folder: Path) -> None:
        """Write hnswlib's ``index.bin``, and ``options.json``. Raises ``OSError`` if the disk is too small."""
        file = folder / INDEX
        self._graph.save_index(str(file))
        if file.stat().st_size != self._graph.index_file_size():  # hnswlib does not check whether it could write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save_options(file, self._parameters, (self.count, self.dim))

    @classmethod
    def load(cls, folder: Path, options: IndexOptions) -> HnswIndex:
        """Read the graph into memory; search parameters in the options replace the saved ones."""
        _refuse_gpu(options.device)
        check_parameters(options.parameters, cls.build_parameters, cls.name)
        saved = load_options(folder / INDEX)
        graph = hnswlib.Index("ip", saved.dim)
        try:
            graph.load_index(str(folder / INDEX))
        except RuntimeError as error:
            raise LlaraError(f"{folder / INDEX}: hnswlib cannot read it ({error}): build the index again") from error
        given = {key: value for key, value in options.parameters.items() if key in cls.search_parameters}
        return cls(graph, {**saved.parameters, **given})

    def append(self, vectors: VectorBlocks) -> None:
        """Add every vector of the stream to the graph."""
        refuse_width(vectors, self.dim)
        self._graph.resize_index(self.count + vectors.count)
        self._link(vectors)

    @property
    def count(self) -> int:
        """Vectors stored."""
        return int(self._graph.get_current_count())

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._graph.dim)

    def search(self, queries: Vectors, k: int, parameters: Parameters | None = None) -> Hits:
        """About the k nearest; exactly the k nearest for a batch in which the graph finds fewer than k."""
        check_parameters(parameters or {}, self.search_parameters, self.name)
        queries = checked_queries(queries, self.dim, k)
        if not len(queries):
            return no_hits(k)
        wanted = min(k, self.count)
        chosen = {**self._parameters, **(parameters or {})}
        ef = max(int(chosen.get("ef", max(2 * wanted, _LEAST_EF))), wanted)
        return self._walk(queries, wanted, k, ef) or self._look_at_all(queries, k)

    def _walk(self, queries: Vectors, wanted: int, k: int, ef: int) -> Hits | None:
        """The graph's hits; None if fewer than ``wanted`` for some query (duplicates can cause that)."""
        for candidates in (ef, 8 * ef):
            self._graph.set_ef(candidates)
            try:
                rows, distances = self._graph.knn_query(queries, wanted)
            except RuntimeError as error:
                if "contiguous 2D array" not in str(error):
                    raise LlaraError(f"hnswlib: {error}") from error
            else:
                # hnswlib's "ip" distance is 1 - inner product.
                return ordered_hits((1 - distances).astype(np.float32), rows.astype(np.int64), k)
        return None

    def _look_at_all(self, queries: Vectors, k: int) -> Hits:
        return ExactIndex.build(_StoredVectors(self._graph), IndexOptions()).search(queries, k)


@dataclass(frozen=True)
class _StoredVectors:
    """The vectors in a graph, as they were added."""

    graph: Any

    @property
    def count(self) -> int:
        return int(self.graph.get_current_count())

    @property
    def dim(self) -> int:
        return int(self.graph.dim)

    def __iter__(self) -> Iterator[Vectors]:
        for start in range(0, self.count, 4096):
            yield self.graph.get_items(np.arange(start, min(start + 4096, self.count)))


def _refuse_gpu(device: str) -> None:
    if device != "cpu":
        raise UserError(f"the hnsw index runs on the CPU only, not on {device!r}; exact and faiss can use a GPU")
