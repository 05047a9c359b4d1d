"""Rows on disk with random access: a memory-mapped Arrow file in blocks of equal size, written as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llara_cli.core.errors import LlaraError
from llara_cli.data.text_files import one_line

BLOCK = 1024


class Table:
    """Rows of an Arrow file, by number; only the pages needed are read."""

    def __init__(self, path: Path) -> None:
        """Raises ``LlaraError`` if the file is missing or damaged."""
        self._path = path
        with self._damage():
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            last = self._reader.num_record_batches - 1
            self._count: int = last * BLOCK + self._reader.get_batch(last).num_rows if last >= 0 else 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows(number, number + 1)[0]

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Rows ``start`` to ``stop`` (exclusive). Raises ``LlaraError`` if they are damaged."""
        found: list[dict[str, Any]] = []
        with self._damage():
            while start < min(stop, len(self)):
                block, first = self._reader.get_batch(start // BLOCK), start % BLOCK
                part = block.slice(first, stop - start)
                part.validate(full=True)
                found += part.to_pylist()
                start += block.num_rows - first
        return found

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, pa.ArrowException) as error:
            raise LlaraError(f"{self._path}: missing or damaged: {one_line(error)}") from error

    def arrays(self, number: int) -> dict[str, NDArray[Any]]:
        """A row of lists of numbers as read-only views of the mapped file."""
        block, row = self._reader.get_batch(number // BLOCK), number % BLOCK
        return {name: block.column(name)[row].values.to_numpy() for name in block.schema.names}

    def total_length(self, name: str) -> int:
        """Total length of a column's lists."""
        batches = (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))
        return sum(int(pc.sum(pc.list_value_length(batch.column(name))).as_py() or 0) for batch in batches)


def write_table(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> int:
    """Stream ``rows`` into an Arrow file; return their number."""
    count, source = 0, iter(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while block := list(islice(source, BLOCK)):
            arrays = [_column([row[field.name] for row in block], field.type) for field in schema]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(block)
    return count


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array; lists of numbers, NumPy's included, are passed on as one flat array."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    numbers = [np.asarray(value, kind.value_type.to_pandas_dtype()) for value in values]
    ends = np.cumsum([0, *map(len, numbers)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(numbers)), type=kind)
