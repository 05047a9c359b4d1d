"""Runs (what was found for each query) and judgements, on disk."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from llara_cli.artifacts import atomic_file
from llara_cli.console import UserError
from llara_cli.data.lines import read_lines
from llara_cli.data.qrels import read_qrels as read_judgements

Run = dict[str, dict[str, float]]
"""query id -> document id -> score."""
Qrels = dict[str, dict[str, int]]
"""query id -> document id -> grade."""
Answers = Iterable[tuple[str, Sequence[tuple[str, float]]]]
"""For each query its id and its hits, best first."""
_SPACE = re.compile(r"\s")
_COLUMNS = "a TREC run has six: query Q0 document rank score tag"


def write_trec_run(path: Path, answers: Answers, tag: str) -> None:
    """Stream a TREC run into ``path``, which is there only when it is complete.

    Raises ``UserError`` for an id that a column cannot hold. White space in ``tag`` becomes ``-``.
    """
    tag = _SPACE.sub("-", tag) or "llara"
    with _aside(path) as file:
        for query, hits in answers:
            _check_column("query", query)
            for rank, (document, score) in enumerate(hits, start=1):
                _check_column("document", document)
                file.write(f"{query} Q0 {document} {rank} {_short(score)} {tag}\n")


def write_jsonl_run(path: Path, answers: Answers, tag: str = "") -> None:
    """The same as one JSON object a line: ``{"query_id", "hits": [{"id", "rank", "score"}]}``, which has no ``tag``."""
    with _aside(path) as file:
        for query, hits in answers:
            listed = [
                {"id": document, "rank": rank, "score": float(_short(score))}
                for rank, (document, score) in enumerate(hits, start=1)
            ]
            file.write(json.dumps({"query_id": query, "hits": listed}, ensure_ascii=False) + "\n")


def read_run(path: Path) -> Run:
    """A TREC run; as for trec_eval, the scores make the order, not the ranks.

    Raises ``UserError`` for a line of another shape, a score that is no number, a document that a query has twice, and
    a file without a hit.
    """
    run: Run = {}
    for number, line in read_lines(path):
        if not line or line.isspace():
            continue
        query, document, score = _run_line(line, f"{path}:{number}")
        hits = run.setdefault(query, {})
        if document in hits:
            raise UserError(f"{path}:{number}: query {query!r} has document {document!r} twice")
        hits[document] = score
    if not run:
        raise UserError(f"{path}: no hit in it: {_COLUMNS}")
    return run


def read_qrels(path: Path) -> Qrels:
    """Judgements of a BEIR or TREC file, grades as they are.

    Raises ``UserError`` for a broken line, a document that a query has with two grades, and a file without a judgement.
    """
    found: Qrels = {}
    for judgement in read_judgements(path):
        grades = found.setdefault(judgement.query_id, {})
        grade = grades.setdefault(judgement.document_id, judgement.grade)
        if grade != judgement.grade:
            raise UserError(
                f"{judgement.where}: query {judgement.query_id!r} has document {judgement.document_id!r} "
                f"with grade {grade} before, with {judgement.grade} here"
            )
    return found


@contextmanager
def _aside(path: Path) -> Iterator[IO[str]]:
    """A file that takes the place of ``path`` when all is written, and vanishes when it is not."""
    with ExitStack() as stack:
        try:
            binary = stack.enter_context(atomic_file(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        try:
            yield text
        finally:
            text.detach()


def _short(score: float) -> str:
    """The shortest text that reads back as the same float32 (the same float, where it is more exact than that)."""
    single = np.float32(score)
    return str(single) if float(single) == score else repr(float(score))


def _check_column(what: str, name: str) -> None:
    if not name or _SPACE.search(name):
        raise UserError(f"{what} id {name!r} is empty or holds white space: a TREC run cannot; take --format jsonl")


def _run_line(line: str, where: str) -> tuple[str, str, float]:
    cells = line.split()
    if len(cells) != 6:
        raise UserError(f"{where}: {len(cells)} columns: {_COLUMNS}")
    try:
        score = float(cells[4])
    except ValueError:
        score = math.nan
    if math.isnan(score):
        raise UserError(f"{where}: the score must be a number, not {cells[4]!r}")
    return cells[0], cells[2], score
