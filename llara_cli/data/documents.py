"""Documents and queries to encode, one at a time, from BEIR's jsonl, tsv, csv or parquet."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from llara_cli.core.errors import UserError
from llara_cli.data.beir import BeirFolder, is_beir_folder
from llara_cli.data.delimited import (
    Row,
    column_names,
    has_column_word,
    is_delimited,
    look_like_names,
    name_cells,
    tsv_rows,
    unquoted,
)
from llara_cli.data.records import Record, read_records
from llara_cli.data.seen_ids import SeenIds
from llara_cli.data.text_files import Note, ignore, kind, one_line

ID_FIELDS = (
    "_id", "id", "docid", "doc_id", "query_id", "qid", "pid", "passage_id", "document_id", "corpus_id", "docno"
)  # fmt: skip
TEXT_FIELDS = ("text", "contents", "query", "passage", "body", "document", "content", "doc", "sentence")
_IDS, _TEXTS = (f"of {what} ({', '.join(names)})" for what, names in (("ids", ID_FIELDS), ("texts", TEXT_FIELDS)))
_TSV_COLUMNS = {2: ("id", "text"), 3: ("id", "title", "text"), 4: ("id", "url", "title", "text")}
"""Columns of a .tsv without header, by number of columns: MS MARCO's passages and queries, with title, documents."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Document:
    """A text to encode, document or query, with its id."""

    id: str
    title: str
    text: str

    @property
    def passage(self) -> str:
        """The text that a model reads."""
        return passage_text(self.title, self.text)


def passage_text(title: str, text: str) -> str:
    """Title and text as one passage."""
    return (title + " " + text).strip()


def read_documents(path: Path, note: Note = ignore) -> Iterator[Document]:
    """Every document of a BEIR ``corpus.jsonl`` or ``queries.jsonl``, MS MARCO ``.tsv``, ``.parquet`` or ``.csv``.

    ``note`` is called with the columns used of a ``.tsv`` or ``.csv``; see ``delimited`` for header lines.

    Raises ``UserError`` at the first row without a valid id or text, at a duplicate id, and at the end of a file
    without documents. An empty text is a document: it is encoded as the bare prompt.
    """
    document = None
    for record, name in named_records(partial(_records, path)):
        if document is None and is_delimited(path):
            taken = (record.name_of(*ID_FIELDS), record.name_of("title"), record.name_of(*TEXT_FIELDS))
            note(f"{path}: columns: {', '.join(column for column in taken if column)}")
        document = Document(name, record.optional_string("title") or "", record.string(*TEXT_FIELDS))
        yield document
    if document is None:
        raise UserError(f"{path}: no documents in it")


def named_records(read: Callable[[], Iterator[Record]]) -> Iterator[tuple[Record, str]]:
    """Every record of ``read()`` with its id. Raises ``UserError`` at the first without one, or with a duplicate.

    ``read`` is called again to confirm a duplicate.
    """
    seen = SeenIds()
    for record in read():
        name = _id(record)
        if seen.add(name):
            _check_duplicate(read, record, name)
        yield record, name


def _check_duplicate(read: Callable[[], Iterator[Record]], record: Record, name: str) -> None:
    """Raise ``UserError`` if ``name`` is the id of a row before ``record``.

    ``SeenIds`` has hashes only. Reading the file again up to here costs nothing without duplicates, rules out false
    alarms, and finds the other place for the message.
    """
    for earlier in read():
        if earlier.where == record.where:
            return
        if _id(earlier) == name:
            raise record.error(f"the id {name!r} is not unique: {earlier.where} has it too")


def _records(path: Path) -> Iterator[Record]:
    if path.is_dir():
        hint = f": name {BeirFolder(path).corpus}" if is_beir_folder(path) else ""
        raise UserError(f"{path} is a folder, not a file of documents{hint}")
    if kind(path)[0] == ".tsv":
        return _read_tsv(path)
    return read_records(path, columns=(*ID_FIELDS, "title", *TEXT_FIELDS))


def _read_tsv(path: Path) -> Iterator[Record]:
    """Rows of a .tsv, with names from its header line, or else from the number of columns."""
    rows = tsv_rows(path)
    first = list(islice(rows, 2))
    if not first:
        return
    where, cells = first[0]
    if len(first) == 1 and any("\r" in cell for cell in cells):
        raise UserError(f"{where}: lines that end with a carriage return alone: convert the file: tr '\\r' '\\n'")
    names, has_header = column_names(cells), _is_header(first)
    if not has_header:
        names = _columns(where, len(cells))
    quotes = has_header or unquoted(cells[0]) != cells[0]
    for where, cells in chain(first[1:] if has_header else first, rows):
        cells = [unquoted(cell) for cell in cells] if quotes else cells
        yield Record(where, dict(name_cells(where, names, cells, "header" if has_header else "first")))


def _is_header(first: Sequence[Row]) -> bool:
    """Whether the first of a .tsv's first two rows is a header line.

    Raises ``UserError`` if it seems to be one but lacks needed columns: it would be read as a document otherwise.
    """
    where, cells = first[0]
    names = column_names(cells)
    if not set(ID_FIELDS).isdisjoint(names) and not set(TEXT_FIELDS).isdisjoint(names):
        return True
    if names[0] in ID_FIELDS or (len(first) > 1 and _is_unlike(cells, first[1][1])):
        raise UserError(
            f"{where}: it seems to be a header line, but names no column {_IDS} or none {_TEXTS}: found "
            f"{one_line(', '.join(names))}; rename them, or if it is a document, put the line id<TAB>text above it"
        )
    return False


def _is_unlike(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the first row looks like names of columns, and the second does not."""
    alone = look_like_names(first) and not look_like_names(second)
    # an id may have such a word too, as "doc 1": then the next row's id has one as well
    return alone or (all(map(has_column_word, first)) and not has_column_word(second[0]))


def _columns(where: str, count: int) -> list[str]:
    if count not in _TSV_COLUMNS:
        raise UserError(f"{where}: {count} columns, but it must be id<TAB>text or id<TAB>title<TAB>text")
    return list(_TSV_COLUMNS[count])


def _id(record: Record) -> str:
    name = record.name_of(*ID_FIELDS)
    if name is None:
        raise record.missing(*ID_FIELDS)
    value = record.fields[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise record.error(f'"{name}" must be a string or a whole number, not {reprlib.repr(value)}')
    if not value.strip():
        raise record.error(f'"{name}" is empty')
    if _CONTROL.search(value):
        # Ids are written one per line, and in columns: such an id could not be read back.
        raise record.error(f'"{name}" {value!r} holds a line break, a tab or another control character')
    return value
