"""Relevance judgments: BEIR's ``query-id, corpus-id, score`` and TREC's ``query 0 document grade``.

A header line is recognized by a usual name in one of its columns, and by a last cell that is not a number. It says
which column is which; further columns are ignored.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llara_cli.core.errors import UserError
from llara_cli.data.delimited import column_names, unquoted
from llara_cli.data.text_files import one_line, read_lines

_NAMES = (
    ("query_id", "queryid", "query", "qid", "topic", "topic_id"),
    ("corpus_id", "docid", "doc_id", "docno", "document_id", "passage_id", "pid"),
    ("score", "grade", "label", "rel", "relevance", "judgment", "judgement"),
)
"""Names in header lines, with ``_`` for ``-`` and blanks, of the query's, the document's and the grade's column."""
_TREC = (0, 2, 3)
"""Columns of query, document and grade among TREC's four."""
_LARGEST_GRADE = 1_000_000
"""trec_eval allocates eight bytes per grade up to the highest, and crashes if it cannot."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """The ``grade`` of a document for a query (0: not relevant), and ``where`` it is from."""

    query_id: str
    document_id: str
    grade: int
    where: str


def read_qrels(path: Path) -> Iterator[Judgment]:
    """Every judgment of a file, in its order: BEIR's (tabs, with or without a header line) or TREC's (white space).

    Raises ``UserError`` at a line of another form, at a header line that does not name the three columns, and at the
    end of a file without judgments.
    """
    judgment, columns = None, None
    filled = ((f"{path}:{number}", line) for number, line in read_lines(path) if line and not line.isspace())
    for place, (where, line) in enumerate(filled):
        if place == 0 and (columns := _header_columns(line, where)) is not None:
            continue
        cells = _cells(line, where) if columns is None else _named_cells(line, where, columns)
        judgment = Judgment(cells[0], cells[1], _grade(cells[2], where, first=place == 0), where)
        yield judgment
    if judgment is None:
        raise UserError(f"{path}: no judgments in it")


def _cells(line: str, where: str) -> list[str]:
    """Query, document, grade."""
    cells = [unquoted(cell) for cell in line.split("\t")]
    if len(cells) != 3:
        cells = line.split()
        if len(cells) == 4:
            del cells[1]
    if len(cells) != 3:
        raise UserError(f"{where}: not a judgment: it must be query-id<TAB>corpus-id<TAB>score, or TREC's four columns")
    return _with_ids(cells, where)


def _with_ids(cells: list[str], where: str) -> list[str]:
    if not (cells[0].strip() and cells[1].strip()):
        raise UserError(f"{where}: the id of the query or of the document is empty")
    return cells


@dataclass(frozen=True, slots=True)
class _Columns:
    """A header line: the number of columns, and those of query, document and grade."""

    count: int
    places: tuple[int, ...]


def _header_columns(line: str, where: str) -> _Columns | None:
    """The columns named by the first line; None if that is a judgment.

    Raises ``UserError`` for a header line in which query, document or grade has no column, or several.
    """
    cells = _split(line)
    names = column_names(cells)
    found = [[place for place, name in enumerate(names) if name in known] for known in _NAMES]
    if not any(found) or _is_number(unquoted(cells[-1])):
        return None
    if any(len(places) != 1 for places in found):
        raise UserError(
            f"{where}: a header line that names no single column each for query, document and score: found "
            f"{one_line(', '.join(names))}; name them query-id, corpus-id, score"
        )
    return _Columns(len(cells), tuple(places[0] for places in found))


def _split(line: str) -> list[str]:
    """The columns of a line in a file with a header line: separated by tabs, or by blanks if there is no tab."""
    return line.split("\t") if "\t" in line else line.split()


def _named_cells(line: str, where: str, columns: _Columns) -> list[str]:
    """Query, document, grade, from the columns of the header line."""
    if columns == _Columns(4, _TREC):
        return _cells(line, where)
    cells = _split(line)
    if len(cells) != columns.count:
        raise UserError(f"{where}: not a judgment: {len(cells)} columns, but the header line has {columns.count}")
    return _with_ids([unquoted(cells[place]) for place in columns.places], where)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _grade(text: str, where: str, *, first: bool) -> int:
    grade = float(text) if _is_number(text) else math.nan
    if not grade.is_integer():
        hint = "; name the columns of a header line query-id, corpus-id, score" if first and math.isnan(grade) else ""
        raise UserError(f"{where}: the score must be a whole number, not {reprlib.repr(text)}{hint}")
    if abs(grade) > _LARGEST_GRADE:
        raise UserError(f"{where}: the score must lie between -{_LARGEST_GRADE} and {_LARGEST_GRADE}, not {text}")
    return int(grade)
