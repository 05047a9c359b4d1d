"""JSON lines, CSV, TSV and parquet as a stream of rows with named fields, each with its place in the file."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llara_cli.core.errors import UserError
from llara_cli.data.delimited import NamedRow, is_delimited, read_csv, read_tsv
from llara_cli.data.text_files import check_file, kind, one_line, read_lines, unreadable

__all__ = ["Record", "read_lines", "read_records"]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
KNOWN = ".jsonl, .json (one object per line), .csv, .tsv, each also as .gz, .bz2 or .zst; .parquet"
_ROWS_AT_ONCE = 1024
_WANTED = "write one object per line (\"jq -c '.[]'\" does that for a list)"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file: its fields, and ``where`` it is: ``file:line`` or ``file: row N``."""

    where: str
    fields: dict[str, Any]

    def error(self, message: str) -> UserError:
        """The error for a mistake in this row."""
        return UserError(f"{self.where}: {message}")

    def name_of(self, *names: str) -> str | None:
        """The first of ``names`` that is a field with a value other than null."""
        return next((name for name in names if self.fields.get(name) is not None), None)

    def string(self, *names: str) -> str:
        """The value of the first of ``names`` that has one. Raises ``UserError`` if none has, or it is not a string."""
        name = self.name_of(*names)
        if name is None:
            raise self.missing(*names)
        value = self.fields[name]
        if not isinstance(value, str):
            raise self.error(f'"{name}" must be a string, not {describe(value)}')
        return value

    def optional_string(self, *names: str) -> str | None:
        """``string``, but None if no field of these names has a value."""
        return None if self.name_of(*names) is None else self.string(*names)

    def missing(self, *names: str) -> UserError:
        """The error for a row in which none of these fields has a value."""
        empty = next((name for name in names if name in self.fields), None)
        if empty is not None:
            return self.error(f'"{empty}" is null')
        others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
        found = one_line(", ".join(map(str, self.fields))) or "none at all"
        hint = "" if not is_delimited(self._file) else "; the first line of the file names the columns"
        return self.error(f'no "{names[0]}" field{others}: found {found}{hint}')

    @property
    def _file(self) -> Path:
        return Path(self.where.rpartition(":")[0])


def read_records(path: Path, columns: Collection[str] | None = None) -> Iterator[Record]:
    """Every row of a ``.jsonl``, ``.json`` (lines), ``.csv``, ``.tsv`` or ``.parquet`` file; blank lines are skipped.

    A ``.csv`` or ``.tsv`` has a header line; see ``delimited`` for it, and for quotation marks.
    ``columns``: the fields needed. Other columns of parquet files, such as vectors beside the texts, are not read; the
    other formats ignore it.
    """
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _read_json_lines,
        ".json": _read_json_lines,
        ".csv": lambda file: map(_named_record, read_csv(file)),
        ".tsv": lambda file: map(_named_record, read_tsv(file)),
    }
    suffix, compression = kind(path)
    check_file(path)
    if suffix == ".parquet" and not compression:
        return _read_parquet(path, columns)
    if suffix not in readers:
        raise UserError(f"{path}: unknown kind of file: known are {KNOWN}")
    return readers[suffix](path)


def describe(value: object) -> str:
    """A value's type in JSON's terms, for messages."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object on a line. Reading a field that occurs twice raises ``UserError``."""
    try:
        value = _JSON.decode(line)
        if "\\u" in line:
            # Half a surrogate pair parses, but is not text: tokenizers and files refuse it.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: not text: half a surrogate pair (an escape like \\ud83d on its own)") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}; {_WANTED}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object but {describe(value)}; {_WANTED}")
    if isinstance(value, _Ambiguous):
        value.where = where
    return value


class _Ambiguous(dict[str, Any]):
    """A JSON object with duplicate fields: only reading one of these raises ``UserError``.

    ``where`` is set for rows only: in nested objects the last value counts, as usual in JSON.
    """

    where = ""
    repeated: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        self._refuse(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As for any ``dict``."""
        self._refuse(name)
        return super().get(name, default)

    def _refuse(self, name: str) -> None:
        if self.where and name in self.repeated:
            raise UserError(f"{self.where}: the field {reprlib.repr(name)} occurs twice: which one counts?")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    ambiguous = _Ambiguous(fields)
    ambiguous.repeated = frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return ambiguous


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _read_json_lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if line and not line.isspace():
            where = f"{path}:{number}"
            yield Record(where, parse_object(line, where))


def _named_record(row: NamedRow) -> Record:
    where, fields = row
    return Record(where, dict(fields))


def _read_parquet(path: Path, columns: Collection[str] | None) -> Iterator[Record]:
    count = 0
    try:
        # A buffer makes pyarrow stream each column instead of reading a whole row group at once.
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"{path}: two columns have one name: {one_line(', '.join(names))}")
            wanted = [name for name in names if columns is None or name in columns]
            # Columns that are not read are null, so that errors can name all columns of the file.
            unread = dict.fromkeys(name for name in names if name not in wanted)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
                for fields in _rows(batch):
                    count += 1
                    yield Record(f"{path}: row {count}", fields | unread)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: row {count + 1}: not UTF-8 (byte 0x{error.object[error.start]:02X})") from error
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path, error) from error
        raise UserError(f"{path}: broken parquet file after row {count}: {one_line(error)}") from error


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        # Again row by row, to find the bad one.
        for row in range(batch.num_rows):
            yield from batch.slice(row, 1).to_pylist()
    else:
        yield from rows
