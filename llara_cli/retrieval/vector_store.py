"""The vector store: embeddings of one collection as memory-mapped shards, ids, and texts with random access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from llara_cli.core.artifacts import Artifact
from llara_cli.core.errors import LlaraError
from llara_cli.core.protocols import Vectors
from llara_cli.data.arrow_table import Table, write_table
from llara_cli.data.documents import Document
from llara_cli.data.id_list import IdList

IDS, TEXTS = "ids.txt", "texts.arrow"
STORES: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}
"""Values of ``store``, and the NumPy type on disk."""
_SCHEMA = pa.schema([("title", pa.string()), ("text", pa.string())])
BLOCK_BYTES = 32 * 2**20
"""Size of the float32 blocks of a store."""


def cut(vectors: Vectors, dim: int | None) -> Vectors:
    """The first ``dim`` numbers of each vector, L2-normalized again (Matryoshka); None: all, unchanged."""
    if dim is None or dim == vectors.shape[1]:
        return vectors
    short = vectors[:, :dim]
    length = np.linalg.norm(short, axis=1, keepdims=True)
    return np.ascontiguousarray(short / np.maximum(length, np.finfo(np.float32).tiny), np.float32)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"vectors-{number:05d}.npy"


def write_documents(folder: Path, documents: Iterable[Document]) -> None:
    """Stream ids and texts into the files of a store."""

    def rows() -> Iterator[dict[str, str]]:
        for document in documents:
            ids.write(document.id + "\n")
            yield {"title": document.title, "text": document.text}

    with (folder / IDS).open("w", encoding="utf-8", newline="\n") as ids:
        write_table(folder / TEXTS, _SCHEMA, rows())


def write_shard(file: IO[bytes], vectors: Vectors, store: str) -> None:
    """Write (rows, dim) as ``.npy``. Not ``np.save``: on a full disk its error does not say so."""
    stored = np.ascontiguousarray(vectors, STORES[store])
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(stored))
    file.write(stored.data)


class VectorStore:
    """A finished embeddings artifact; iterating over it yields (rows, dim) float32 blocks."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        counts = artifact.manifest["counts"]
        self.count: int = counts["count"]
        self.dim: int = counts["dim"]

    @cached_property
    def ids(self) -> IdList:
        """Document ids, in the order of the vectors."""
        return IdList(self.artifact.path / IDS)

    @cached_property
    def texts(self) -> Table:
        """Rows with ``title`` and ``text``."""
        return Table(self.artifact.path / TEXTS)

    def __iter__(self) -> Iterator[Vectors]:
        """Raises ``LlaraError`` for a damaged shard, and at the end for a missing one."""
        seen = 0
        for path in sorted(self.artifact.path.glob("vectors-*.npy")):
            shard = _open_shard(path, self.dim)
            rows = max(1, BLOCK_BYTES // (4 * self.dim))
            for start in range(0, len(shard), rows):
                yield np.ascontiguousarray(shard[start : start + rows], dtype=np.float32)
            seen += len(shard)
        if seen != self.count:
            raise self.damaged()

    def damaged(self) -> LlaraError:
        """The error for files that differ from the manifest."""
        return LlaraError(f"{self.artifact.path} is damaged: llara status --verify names the file")

    def matrix(self) -> Vectors:
        """All vectors, (count, dim)."""
        return np.concatenate(list(self))


def _open_shard(path: Path, dim: int) -> np.ndarray:
    try:
        shard: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LlaraError(f"{path}: damaged shard: {error}") from error
    if shard.ndim != 2 or shard.shape[1] != dim:
        raise LlaraError(f"{path}: damaged shard: shape {shard.shape}, expected (rows, {dim})")
    return shard
