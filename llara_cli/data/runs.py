"""Runs, the hits of each query, on disk: TREC and jsonl."""

from __future__ import annotations

import io
import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import IO

import numpy as np

from llara_cli.core.artifacts import atomic_file
from llara_cli.core.errors import UserError
from llara_cli.data.qrels import read_qrels as read_judgments
from llara_cli.data.records import Record, read_records
from llara_cli.data.text_files import kind, read_lines

Run = dict[str, dict[str, float]]
"""query id -> document id -> score."""
Qrels = dict[str, dict[str, int]]
"""query id -> document id -> grade."""
RankedQueries = Iterable[tuple[str, Sequence[tuple[str, float]]]]
"""The id of each query and its hits, best first."""
Opener = Callable[[Path], AbstractContextManager[IO[bytes]]]
"""Opens a file to write: ``atomic_file`` in the workspace, ``open_output`` for a file named by the user."""
Hit = tuple[str, str, str, float]
"""Place in the file, query id, document id, score."""
_SPACE = re.compile(r"\s")
_COLUMNS = "a TREC run has six: query Q0 document rank score tag"


def write_trec_run(path: Path, queries: RankedQueries, tag: str, opener: Opener = atomic_file) -> None:
    """Stream a TREC run into ``path``; a regular file appears only when it is complete.

    Raises ``UserError`` for an id with white space. White space in ``tag`` becomes ``-``.
    """
    tag = _SPACE.sub("-", tag) or "llara"
    with _opened(path, opener) as file:
        for query, hits in queries:
            _check_column("query", query)
            for rank, (document, score) in enumerate(hits, start=1):
                _check_column("document", document)
                file.write(f"{query} Q0 {document} {rank} {_short(score)} {tag}\n")


def write_jsonl_run(path: Path, queries: RankedQueries, tag: str = "", opener: Opener = atomic_file) -> None:
    """Write one JSON object per query: ``{"query_id", "hits": [{"id", "rank", "score"}]}``; ``tag`` is not used."""
    with _opened(path, opener) as file:
        for query, hits in queries:
            listed = [
                {"id": document, "rank": rank, "score": float(_short(score))}
                for rank, (document, score) in enumerate(hits, start=1)
            ]
            file.write(json.dumps({"query_id": query, "hits": listed}, ensure_ascii=False) + "\n")


def save_run(folder: Path, name: str, queries: RankedQueries, tag: str) -> Path:
    """Write ``NAME.trec`` in ``folder``, or ``NAME.jsonl`` if an id has white space, which TREC runs do not allow."""
    left, rest = iter(queries), []

    def fitting() -> Iterator[tuple[str, Sequence[tuple[str, float]]]]:
        for query, hits in left:
            if not all(map(_fits_column, (query, *(document for document, _ in hits)))):
                rest.append((query, hits))
                return
            yield query, hits

    trec, as_json = folder / f"{name}.trec", folder / f"{name}.jsonl"
    write_trec_run(trec, fitting(), tag)
    if not rest:
        as_json.unlink(missing_ok=True)
        return trec
    write_jsonl_run(as_json, chain(read_ranked_queries(trec), rest, left))
    trec.unlink()
    return as_json


def read_ranked_queries(path: Path) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Read a run query by query; the hits of a query must be consecutive, as in runs written here."""
    for query, hits in groupby(_hits(path), key=itemgetter(1)):
        yield query, [(document, score) for _, _, document, score in hits]


def read_run(path: Path) -> Run:
    """Read a run, TREC or ``.jsonl`` (see ``write_jsonl_run``); the scores make the order, not the ranks.

    Raises ``UserError`` for a line of another form, a score that is not a number, a document that occurs twice for a
    query, and a file without hits.
    """
    run: Run = {}
    for where, query, document, score in _hits(path):
        hits = run.setdefault(query, {})
        if document in hits:
            raise UserError(f"{where}: query {query!r} has document {document!r} twice")
        hits[document] = score
    if not run:
        raise UserError(f"{path}: no hits in it: {_COLUMNS}")
    return run


def read_qrels(path: Path) -> Qrels:
    """Read the judgments of a BEIR or TREC file.

    Raises ``UserError`` for a damaged line, a document with two grades for a query, and a file without judgments.
    """
    found: Qrels = {}
    for judgment in read_judgments(path):
        grades = found.setdefault(judgment.query_id, {})
        grade = grades.setdefault(judgment.document_id, judgment.grade)
        if grade != judgment.grade:
            raise UserError(
                f"{judgment.where}: query {judgment.query_id!r} has document {judgment.document_id!r} "
                f"with grade {grade} before, with {judgment.grade} here"
            )
    return found


@contextmanager
def _opened(path: Path, opener: Opener) -> Iterator[IO[str]]:
    """The file of ``opener``, as UTF-8 text."""
    with ExitStack() as stack:
        try:
            binary = stack.enter_context(opener(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        try:
            yield text
        finally:
            text.detach()  # which flushes; the opener closes what is below


def _short(score: float) -> str:
    """The shortest text that reads back as the same float32, or float64 if the score is not a float32."""
    single = np.float32(score)
    return str(single) if float(single) == score else repr(float(score))


def _check_column(what: str, name: str) -> None:
    if not _fits_column(name):
        raise UserError(
            f"{what} id {name!r} is empty or has white space: a TREC run cannot hold it: use `format='jsonl'`"
        )


def _fits_column(name: str) -> bool:
    return bool(name) and not _SPACE.search(name)


def _hits(path: Path) -> Iterator[Hit]:
    """Every hit of a run; the file's name decides the format."""
    return _json_hits(path) if kind(path)[0] == ".jsonl" else _trec_hits(path)


def _trec_hits(path: Path) -> Iterator[Hit]:
    for number, line in read_lines(path):
        if line and not line.isspace():
            yield _run_line(line, f"{path}:{number}")


def _json_hits(path: Path) -> Iterator[Hit]:
    for record in read_records(path):
        query, hits = record.string("query_id"), record.fields.get("hits")
        if not isinstance(hits, list):
            raise record.error('"hits" must be a list of {"id", "score"}')
        for fields in hits:
            hit = Record(record.where, fields if isinstance(fields, dict) else {})
            score = _number(hit.fields.get("score"))
            if math.isnan(score):
                raise hit.error(f'"score" must be a number, not {reprlib.repr(hit.fields.get("score"))}')
            yield record.where, query, hit.string("id"), score


def _number(value: object) -> float:
    """A JSON number as a float; NaN for anything else, and for one that is too large."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _run_line(line: str, where: str) -> Hit:
    cells = line.split()
    if len(cells) != 6:
        raise UserError(f"{where}: {len(cells)} columns: {_COLUMNS}")
    try:
        score = float(cells[4])
    except ValueError:
        score = math.nan
    if math.isnan(score):
        raise UserError(f"{where}: the score must be a number, not {cells[4]!r}")
    return where, cells[0], cells[2], score
