"""Reads vectors of other tools, ``.npy`` with an ids file or ``.parquet``, and trusts nothing in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llara_cli.core.errors import UserError
from llara_cli.core.input_digests import input_record
from llara_cli.data.documents import ID_FIELDS, TEXT_FIELDS, Document, named_records
from llara_cli.data.records import Record, read_records
from llara_cli.data.text_files import check_file, one_line, read_lines
from llara_cli.retrieval.vector_origin import METADATA, Origin, ids_path, origin_path, refuse_ending

VECTOR_FIELDS = ("vector", "embedding", "embeddings")


class VectorFile(Protocol):
    """A file of vectors with their ids."""

    @property
    def path(self) -> Path: ...

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """Names and digests of the files that are read."""

    @property
    def count(self) -> int: ...

    @property
    def origin(self) -> Origin | None:
        """The model that made the vectors, if recorded. Raises ``UserError`` if the record is damaged."""

    @property
    def origin_file(self) -> Path:
        """The file that records the origin."""

    def documents(self) -> Iterator[Document]:
        """Unique ids, and texts if there are any. Raises ``UserError`` with the line or row."""

    def blocks(self, dim: int, rows: int) -> Iterator[NDArray[Any]]:
        """Blocks (at most ``rows``, dim) of floats. Raises ``UserError`` for a vector of another width."""


def open_vectors(path: Path) -> VectorFile:
    """Open the file. Raises ``UserError`` if it is missing or of an unknown format."""
    refuse_ending(path)
    check_file(path)
    return NpyFile(path) if path.suffix.lower() == ".npy" else ParquetFile(path)


@dataclass(frozen=True)
class NpyFile:
    """``FILE.npy`` (count, dim) and ``FILE.npy.ids.txt``, one id per line."""

    path: Path

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """The vectors and the ids."""
        check_file(ids_path(self.path))
        return [self._record, input_record(ids_path(self.path))]

    @cached_property
    def _record(self) -> dict[str, Any]:
        """Name and digest of the vectors, which also check their origin."""
        return input_record(self.path)

    @property
    def count(self) -> int:
        """Rows."""
        return len(self._matrix)

    @property
    def origin_file(self) -> Path:
        """The file beside the vectors."""
        return origin_path(self.path)

    @cached_property
    def origin(self) -> Origin | None:
        """The record in the file beside, if there is one. Raises ``UserError`` if it is of other vectors."""
        if not self.origin_file.is_file():
            return None
        origin = Origin.parse(self.origin_file.read_bytes(), self.origin_file)
        if origin.vectors != self._record["sha256"]:
            raise UserError(
                f"{self.origin_file} is of other vectors than those in {self.path.name}: delete it, and name the model "
                "that made them with `model`"
            )
        return origin

    @cached_property
    def _matrix(self) -> NDArray[Any]:
        """The matrix (count, dim), memory-mapped; pickles are never loaded."""
        try:
            found: NDArray[Any] = np.lib.format.open_memmap(self.path, mode="r")
        except (OSError, ValueError) as error:
            if "object" in str(error).lower():
                raise UserError(
                    f"{self.path}: holds Python objects (ragged rows, or a pickle), not one matrix of floats"
                ) from error
            raise UserError(f"{self.path}: damaged or incomplete .npy file: {one_line(error)}") from error
        if found.ndim != 2 or found.dtype.kind != "f":
            raise UserError(f"{self.path}: {found.dtype} of shape {found.shape}: not floats of shape (vectors, dim)")
        return found

    def documents(self) -> Iterator[Document]:
        """Ids without texts."""
        ids, count = ids_path(self.path), 0
        for _, name in named_records(partial(_lines, ids)):
            count += 1
            yield Document(name, "", "")
        if count != self.count:
            raise UserError(f"{ids}: {count} ids, but {self.path} has {self.count} vectors")

    def blocks(self, dim: int, rows: int) -> Iterator[NDArray[Any]]:
        """Slices of the matrix."""
        if self._matrix.shape[1] != dim:
            raise UserError(f"{self.path}: vectors of {self._matrix.shape[1]} numbers, but the model's have {dim}")
        for start in range(0, self.count, rows):
            yield self._matrix[start : start + rows]


@dataclass(frozen=True)
class ParquetFile:
    """A file with columns ``id``, ``vector`` and, optionally, ``title`` and ``text``."""

    path: Path

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """The one file."""
        return [input_record(self.path)]

    @property
    def count(self) -> int:
        """Rows."""
        with self._opened() as file:
            return int(file.metadata.num_rows)

    @property
    def origin_file(self) -> Path:
        """The file itself."""
        return self.path

    @property
    def origin(self) -> Origin | None:
        """The record in the schema's metadata, if there is one."""
        with self._opened() as file:
            recorded = (file.schema_arrow.metadata or {}).get(METADATA)
        return Origin.parse(recorded, self.path) if recorded is not None else None

    def documents(self) -> Iterator[Document]:
        """Ids, titles and texts; missing ones are empty."""
        for record, name in named_records(partial(read_records, self.path, (*ID_FIELDS, "title", *TEXT_FIELDS))):
            yield Document(name, record.optional_string("title") or "", record.optional_string(*TEXT_FIELDS) or "")

    def blocks(self, dim: int, rows: int) -> Iterator[NDArray[Any]]:
        """Batches of the vector column."""
        with self._opened() as file:
            name, seen = self._column(file), 0
            try:
                for batch in file.iter_batches(batch_size=rows, columns=[name]):
                    yield self._matrix(batch.column(0), dim, seen)
                    seen += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{self.path}: broken parquet file after row {seen}: {one_line(error)}") from error

    def _opened(self) -> Any:
        try:
            return pq.ParquetFile(self.path, buffer_size=1 << 20)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: damaged or incomplete parquet file: {one_line(error)}") from error

    def _column(self, file: Any) -> str:
        schema = file.schema_arrow
        name = next((name for name in VECTOR_FIELDS if name in schema.names), None)
        if name is None:
            raise UserError(f'{self.path}: no "vector" column (nor {", ".join(VECTOR_FIELDS[1:])})')
        kind = schema.field(name).type
        if not hasattr(kind, "value_type") or not pa.types.is_floating(kind.value_type):
            raise UserError(f'{self.path}: "{name}" is {kind}: must be lists of floats')
        return str(name)

    def _matrix(self, column: Any, dim: int, before: int) -> NDArray[Any]:
        """The vectors (rows, dim) of a batch that starts at row ``before``; a missing number is NaN."""
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        if (lengths != dim).any():
            row = int((lengths != dim).argmax())
            found = "no vector" if lengths[row] < 0 else f"a vector of {lengths[row]} numbers"
            raise UserError(f"{self.path}: row {before + row + 1}: {found}, but the model's have {dim}")
        matrix: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        return matrix


def _lines(path: Path) -> Iterator[Record]:
    return (Record(f"{path}:{number}", {"id": line}) for number, line in read_lines(path))
