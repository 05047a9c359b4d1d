"""Fine-tuning rows, a query with its positives and hard negatives, in the usual formats.

FlagEmbedding      {"query", "pos": [...], "neg": [...], "pos_scores", "neg_scores"}
Tevatron           {"query_id", "query", "positive_passages": [{"docid", "title", "text"}], "negative_passages": [...]}
columns            anchor, positive, negative or negative_1 ... negative_n, as in sentence-transformers
BEIR               a folder with corpus.jsonl, queries.jsonl and qrels/train.tsv
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llara_cli.core.errors import UserError
from llara_cli.data.beir import BeirFolder
from llara_cli.data.delimited import is_delimited
from llara_cli.data.documents import passage_text, read_documents
from llara_cli.data.qrels import Judgment, read_qrels
from llara_cli.data.records import Record, describe, read_records
from llara_cli.data.text_files import Note, check_file, ignore

QUERY_FIELDS = ("query", "anchor", "question")
POSITIVE_FIELDS = ("pos", "positive", "answer")
NEGATIVE_FIELDS = ("neg", "negative")
NUMBERED_NEGATIVE = re.compile(r"negative_(\d+)")
_NO_SCORES = "no pos_scores and neg_scores, which `distillation` needs"
_LARGEST_SCORE = 3e38
"""Largest score that fits fp32, in which scores are compared."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A query with its positives and negatives; ids and scores are in the order of their passages.

    A passage that is both positive and negative stays in both: the loss decides whether to mask it.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    positive_ids: tuple[str | None, ...]
    negative_ids: tuple[str | None, ...]
    query_id: str | None = None
    positive_scores: tuple[float, ...] | None = None
    negative_scores: tuple[float, ...] | None = None


def read_training_rows(path: Path, *, scored: bool = False, note: Note = ignore) -> Iterator[TrainingRow]:
    """Every row of a file (jsonl, csv, tsv, parquet; its fields show the format) or of a BEIR folder.

    ``note`` is called with the columns used of a ``.csv`` or ``.tsv``.

    Raises ``UserError`` at the first invalid row, at one without scores if they are to be ``scored``, and at the end of
    a file without rows.
    """
    return (row for _, row in read_raw_rows(path, scored=scored, note=note))


def training_files(path: Path) -> list[Path]:
    """The files of a training argument. Raises ``UserError`` if one is missing."""
    if not path.is_dir():
        check_file(path)
        return [path]
    folder = BeirFolder(path)
    return [folder.corpus, folder.queries, folder.qrels("train")]


def read_raw_rows(
    path: Path, *, scored: bool = False, note: Note = ignore
) -> Iterator[tuple[dict[str, Any], TrainingRow]]:
    """``read_training_rows``, each row with its fields in the file.

    Rows of a BEIR folder get FlagEmbedding's fields.
    """
    found = None
    rows: Iterator[tuple[dict[str, Any], TrainingRow]]
    if path.is_dir():
        if scored:
            raise UserError(f"{path}: a BEIR folder has {_NO_SCORES}")
        rows = ((_beir_fields(row), row) for row in _beir_rows(BeirFolder(path)))
    else:
        rows = _file_rows(path, scored, note)
    for found in rows:
        yield found
    if found is None:
        raise UserError(f"{path}: no training rows in it")


def _file_rows(path: Path, scored: bool, note: Note) -> Iterator[tuple[dict[str, Any], TrainingRow]]:
    for number, record in enumerate(read_records(path)):
        row = _row(record, scored)
        if number == 0 and is_delimited(path):
            taken = [record.name_of(*QUERY_FIELDS), record.name_of(*POSITIVE_FIELDS), *_negative_fields(record)]
            note(f"{path}: columns: {', '.join(name for name in taken if name)}")
        yield record.fields, row


def _beir_fields(row: TrainingRow) -> dict[str, Any]:
    fields = {"query_id": row.query_id, "query": row.query}
    return {**fields, "pos": list(row.positives), "pos_ids": list(row.positive_ids)}


def _row(record: Record, scored: bool) -> TrainingRow:
    row = _tevatron_row(record) if "positive_passages" in record.fields else _plain_row(record)
    if scored and (row.positive_scores is None or (row.negatives and row.negative_scores is None)):
        raise record.error(_NO_SCORES)
    return row


def _plain_row(record: Record) -> TrainingRow:
    """A row of FlagEmbedding's fields or sentence-transformers' columns, which differ by name only."""
    name = record.name_of(*POSITIVE_FIELDS)
    if name is None:
        raise record.missing(*POSITIVE_FIELDS, "positive_passages")
    positives = _checked(record, name, _texts(record, name))
    negatives = tuple(text for field in _negative_fields(record) for text in _texts(record, field))
    return TrainingRow(
        query=record.string(*QUERY_FIELDS),
        positives=positives,
        negatives=negatives,
        positive_ids=_ids(record, "pos_ids", len(positives)),
        negative_ids=_ids(record, "neg_ids", len(negatives)),
        query_id=_id(record, record.fields.get("query_id"), "query_id"),
        positive_scores=_scores(record, "pos_scores", len(positives)),
        negative_scores=_scores(record, "neg_scores", len(negatives)),
    )


def _negative_fields(record: Record) -> list[str]:
    """The fields of negatives, numbered ones in numerical order."""
    numbered = [(int(match[1]), name) for name in record.fields if (match := NUMBERED_NEGATIVE.fullmatch(name))]
    present = [name for name in NEGATIVE_FIELDS if name in record.fields]
    return present + [name for _, name in sorted(numbered)]


def _texts(record: Record, name: str) -> tuple[str, ...]:
    """The texts of a field, which has one or a list of them; none for null or an empty cell of a table."""
    value = record.fields[name]
    if value is None or value == "":
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise record.error(f'"{name}" must be a string or a list of strings, not {describe(value)}')
    for text in texts:
        if not isinstance(text, str):
            raise record.error(f'"{name}" contains {describe(text)}: every passage must be a string')
    return tuple(texts)


def _checked(record: Record, name: str, positives: Sequence[str]) -> tuple[str, ...]:
    if not positives:
        raise record.error(f'"{name}" is empty: a training row needs a positive passage')
    if not all(text.strip() for text in positives):
        raise record.error(f'"{name}" contains a passage without text: a positive must have text')
    return tuple(positives)


def _scores(record: Record, name: str, count: int) -> tuple[float, ...] | None:
    value = record.fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} scores" if isinstance(value, list) else describe(value)
        raise record.error(f'"{name}" must be a list of {count} numbers, one per passage, not {found}')
    for score in value:
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < _LARGEST_SCORE:
            raise record.error(f'"{name}" contains {reprlib.repr(score)}: every score must be a finite number')
    return tuple(map(float, value))


def _ids(record: Record, name: str, count: int) -> tuple[str | None, ...]:
    """The ids of the passages, as in mined rows; None for each if there are none."""
    value = record.fields.get(name)
    if value is None:
        return (None,) * count
    if not isinstance(value, list) or len(value) != count:
        raise record.error(f'"{name}" must be a list of {count} ids, one per passage')
    return tuple(_id(record, item, name) for item in value)


def _id(record: Record, value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise record.error(f'"{name}" must be a string or a whole number, not {describe(value)}')


def _tevatron_row(record: Record) -> TrainingRow:
    positives = _tevatron_passages(record, "positive_passages")
    negatives = _tevatron_passages(record, "negative_passages")
    return TrainingRow(
        query=record.string(*QUERY_FIELDS),
        positives=_checked(record, "positive_passages", [text for _, text in positives]),
        negatives=tuple(text for _, text in negatives),
        positive_ids=tuple(name for name, _ in positives),
        negative_ids=tuple(name for name, _ in negatives),
        query_id=_id(record, record.fields.get("query_id"), "query_id"),
    )


def _tevatron_passages(record: Record, name: str) -> list[tuple[str | None, str]]:
    """(id, text) of the passages in a field."""
    value = record.fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise record.error(f'"{name}" must be a list of objects with docid, title and text')
    passages = [Record(record.where, item) for item in value]
    return [
        (
            _id(record, passage.fields.get("docid"), "docid"),
            passage_text(passage.optional_string("title") or "", passage.string("text")),
        )
        for passage in passages
    ]


def _beir_rows(folder: BeirFolder) -> Iterator[TrainingRow]:
    """One row per query with all its positives (grade above 0), in the order of the judgments.

    Only judged texts are kept in memory: for MS MARCO half a million of nine million passages.
    """
    judged: dict[str, dict[str, Judgment]] = {}
    for judgment in read_qrels(folder.qrels("train")):
        if judgment.grade > 0:
            judged.setdefault(judgment.query_id, {})[judgment.document_id] = judgment
    queries = _lookup(folder.queries, judged.keys())
    passages = _lookup(folder.corpus, {document_id for row in judged.values() for document_id in row})
    for query_id, row in judged.items():
        query = _found(queries, query_id, next(iter(row.values())), folder.queries)
        positives = tuple(_found(passages, name, judgment, folder.corpus) for name, judgment in row.items())
        yield TrainingRow(query, positives, (), tuple(row), (), query_id)


def _lookup(path: Path, wanted: Collection[str]) -> dict[str, str]:
    """The texts of the wanted documents, by id."""
    return {document.id: document.passage for document in read_documents(path) if document.id in wanted}


def _found(texts: dict[str, str], name: str, judgment: Judgment, path: Path) -> str:
    if name not in texts:
        raise UserError(f"{judgment.where}: {name!r} is not in {path}")
    return texts[name]
