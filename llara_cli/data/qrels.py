"""Relevance judgements: BEIR's ``query-id, corpus-id, score`` and TREC's ``query 0 document grade``.

A header line is known by a usual name in one of its columns, and by a score that is no number.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llara_cli.console import UserError
from llara_cli.data.delimited import unquoted
from llara_cli.data.lines import read_lines

_HEADINGS = {
    "query_id", "queryid", "query", "qid", "topic", "topic_id", "corpus_id", "docid", "doc_id", "docno", "document_id",
    "passage_id", "pid", "score", "grade", "label", "rel", "relevance", "judgment", "judgement",
}  # fmt: skip
"""Names of columns in header lines, with ``_`` for ``-`` and blanks."""
_LARGEST_GRADE = 1_000_000
"""trec_eval takes eight bytes a grade up to the highest, and crashes where it does not get them."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """That a document answers a query to a ``grade`` (0: not at all), and ``where`` that is written."""

    query_id: str
    document_id: str
    grade: int
    where: str


def read_qrels(path: Path) -> Iterator[Judgement]:
    """Every judgement of a file, in its order: BEIR's (tabs, with or without a header line) or TREC's (white space).

    Raises ``UserError`` at a line of another shape, and at the end where there was no judgement at all.
    """
    judgement = None
    filled = ((f"{path}:{number}", line) for number, line in read_lines(path) if line and not line.isspace())
    for place, (where, line) in enumerate(filled):
        cells = _cells(line, where)
        if place == 0 and _is_header(cells):
            continue
        judgement = Judgement(cells[0], cells[1], _grade(cells[2], where, first=place == 0), where)
        yield judgement
    if judgement is None:
        raise UserError(f"{path}: no judgement in it")


def _cells(line: str, where: str) -> list[str]:
    """Query, document, grade."""
    cells = [unquoted(cell) for cell in line.split("\t")]
    if len(cells) != 3:
        cells = line.split()
        if len(cells) == 4:
            del cells[1]
    if len(cells) != 3:
        raise UserError(
            f"{where}: not a judgement: wanted are query-id<TAB>corpus-id<TAB>score, or TREC's four columns"
        )
    if not (cells[0].strip() and cells[1].strip()):
        raise UserError(f"{where}: the id of the query or of the document is empty")
    return cells


def _is_header(cells: list[str]) -> bool:
    names = {re.sub(r"[-\s]+", "_", cell.strip().strip('"').lower()) for cell in cells}
    return not _is_number(cells[2]) and not names.isdisjoint(_HEADINGS)


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
