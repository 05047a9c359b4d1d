"""``export``: embeddings as one file that any other tool reads, ``.npy`` with ids beside it, or ``.parquet``.

Which model made the vectors is recorded beside the ``.npy``, or in the ``.parquet``'s metadata, for ``encode --from``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llara_cli.core.artifacts import sha256_file
from llara_cli.core.errors import UserError
from llara_cli.core.output_files import check_output, is_stream, open_output
from llara_cli.core.protocols import Advance
from llara_cli.core.workspace import Workspace
from llara_cli.retrieval.vector_origin import METADATA, Origin, ids_path, origin_path, refuse_ending
from llara_cli.retrieval.vector_store import IDS, VectorStore

ROW_GROUP = 4096
"""Rows of a .parquet file that are written together."""


@dataclass(frozen=True)
class Exporting:
    """One run of ``export``; ``force``: an existing file is replaced."""

    workspace: Workspace
    store: VectorStore
    file: Path
    force: bool = False

    def run(self) -> dict[str, Any]:
        """Write the whole file or nothing. Raises ``UserError`` if that is not possible, or the file exists already."""
        refuse_ending(self.file)
        is_npy = self.file.suffix.lower() == ".npy"
        written = [self.file, *([ids_path(self.file), origin_path(self.file)] if is_npy else [])]
        self._refuse_place(written)
        started = time.monotonic()
        with self.workspace.reporter.bar("exporting", self.store.count, unit="vectors") as bar:
            (self._write_npy if is_npy else self._write_parquet)(bar.advance)
        return {
            "embeddings": self.store.artifact.name,
            "file": str(self.file),
            "count": self.store.count,
            "dim": self.store.dim,
            "bytes": sum(path.stat().st_size for path in written),
            "seconds": round(time.monotonic() - started, 3),
        }

    def _refuse_place(self, files: list[Path]) -> None:
        for file in files:
            check_output(file, self.workspace.root, setting="file")
        there = [str(file) for file in files if file.exists() and not is_stream(file)]
        if there and not self.force:
            raise UserError(f"{', '.join(there)}: exists already; `force=True` replaces it")

    def _write_npy(self, progress: Advance) -> None:
        """(count, dim) float32 behind NumPy's header; the ids, and the origin."""
        shape = (self.store.count, self.store.dim)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with open_output(self.file) as file, open_output(ids_path(self.file)) as names:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._blocks(progress):
                file.write(np.ascontiguousarray(block, "<f4").data)
            with (self.store.artifact.path / IDS).open("rb") as ids:
                if _copy_lines(ids, names) != self.store.count:
                    raise self.store.damaged()
            _discard(origin_path(self.file))  # it may belong to the vectors that are replaced
        with open_output(origin_path(self.file)) as file:
            digest = "" if is_stream(self.file) else sha256_file(self.file)
            file.write(replace(Origin.of(self.store.artifact), vectors=digest).as_json().encode())

    def _write_parquet(self, progress: Advance) -> None:
        """Write columns id, vector, title, text, one row group at a time, and the origin in the schema's metadata."""
        vector = pa.list_(pa.float32(), self.store.dim)
        schema = pa.schema([("id", pa.string()), ("vector", vector), ("title", pa.string()), ("text", pa.string())])
        schema = schema.with_metadata({METADATA: Origin.of(self.store.artifact).as_json()})
        names = iter(self.store.ids)
        with (
            open_output(self.file) as file,
            pq.ParquetWriter(file, schema, use_dictionary=False) as writer,
        ):
            row = 0
            for block in self._blocks(progress):
                for start in range(0, len(block), ROW_GROUP):
                    part = block[start : start + ROW_GROUP]
                    writer.write_batch(self._batch(schema, part, names, row))
                    row += len(part)

    def _batch(self, schema: pa.Schema, vectors: Any, names: Iterator[str], row: int) -> pa.RecordBatch:
        """A batch of rows from ``row`` on: vectors (rows, dim) with their ids and texts."""
        texts = self.store.texts.rows(row, row + len(vectors))
        ids = list(islice(names, len(vectors)))
        if not len(texts) == len(ids) == len(vectors):
            raise self.store.damaged()
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        columns = [
            pa.array(ids, pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, self.store.dim),
            *(pa.array([text[name] for text in texts], pa.string()) for name in ("title", "text")),
        ]
        return pa.record_batch(columns, schema=schema)

    def _blocks(self, progress: Advance) -> Iterator[Any]:
        """The store's blocks."""
        for block in self.store:
            yield block
            progress(len(block))


def _discard(file: Path) -> None:
    """Remove the file behind all links; devices, pipes and the links themselves stay."""
    if not is_stream(file) and (target := file.resolve()).is_file():
        target.unlink()


def _copy_lines(source: IO[bytes], target: IO[bytes]) -> int:
    """Copy all bytes; return the number of lines."""
    count = 0
    while chunk := source.read(1 << 20):
        target.write(chunk)
        count += chunk.count(b"\n")
    return count
