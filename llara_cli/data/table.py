"""Rows on disk with random access: a memory-mapped Arrow file in blocks of equal size, written as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

BLOCK = 1024


class Table:
    """Rows of an Arrow file, by number; only the pages that are asked for are read."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        last = self._reader.num_record_batches - 1
        self._count: int = last * BLOCK + self._reader.get_batch(last).num_rows if last >= 0 else 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, Any]:
        block = self._reader.get_batch(number // BLOCK)
        return {name: block.column(name)[number % BLOCK].as_py() for name in block.schema.names}

    def column(self, name: str) -> Iterator[Any]:
        """One column's values, in order, block by block."""
        for number in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(number).column(name)

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Rows ``start`` to ``stop`` (exclusive)."""
        return [self[number] for number in range(start, min(stop, len(self)))]


def write_table(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> int:
    """Stream ``rows`` into an Arrow file; how many there were."""
    count, source = 0, iter(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while block := list(islice(source, BLOCK)):
            arrays = [pa.array([row[field.name] for row in block], field.type) for field in schema]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(block)
    return count
