"""Relevance judgements: BEIR's ``query-id, corpus-id, score`` and TREC's ``query 0 document grade``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llara_cli.console import UserError
from llara_cli.data.lines import read_lines

_HEADER = "query-id"


@dataclass(frozen=True, slots=True)
class Judgement:
    """That a document answers a query to a ``grade`` (0: not at all), and ``where`` that is written."""

    query_id: str
    document_id: str
    grade: int
    where: str


def read_qrels(path: Path) -> Iterator[Judgement]:
    """Every judgement of a file, in its order: BEIR's (tabs, with or without the header line) or TREC's (white space).

    Raises ``UserError`` at a line of another shape, and at the end where there was no judgement at all.
    """
    judgement = None
    for number, line in read_lines(path):
        if line.isspace() or not line or (number == 1 and line.startswith(_HEADER)):
            continue
        judgement = _judgement(line, f"{path}:{number}")
        yield judgement
    if judgement is None:
        raise UserError(f"{path}: no judgement in it")


def _judgement(line: str, where: str) -> Judgement:
    cells = line.strip("\r\n").split("\t")
    if len(cells) != 3:
        cells = line.split()
        if len(cells) == 4:
            del cells[1]
    if len(cells) != 3:
        raise UserError(
            f"{where}: not a judgement: wanted are query-id<TAB>corpus-id<TAB>score, or TREC's four columns"
        )
    return Judgement(cells[0], cells[1], _grade(cells[2], where), where)


def _grade(text: str, where: str) -> int:
    try:
        grade = float(text)
        if grade == int(grade):
            return int(grade)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{where}: the score must be a whole number, not {text!r}")
