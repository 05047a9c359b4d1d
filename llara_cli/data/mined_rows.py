"""Training rows with other negatives, written in the format they came in."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llara_cli.data.delimited import quoted
from llara_cli.data.documents import Document
from llara_cli.data.text_files import kind
from llara_cli.data.training_rows import NEGATIVE_FIELDS, NUMBERED_NEGATIVE, POSITIVE_FIELDS

_ROWS_AT_ONCE = 1024
_BREAK = re.compile(r"[\t\r\n]")
Fields = dict[str, Any]


def output_suffix(train: Path) -> str:
    """The ending of a file with the rows of ``train``; ``.jsonl`` for a folder."""
    suffix = ".jsonl" if train.is_dir() else kind(train)[0]
    return suffix if suffix in (".csv", ".tsv", ".parquet") else ".jsonl"


def with_negatives(fields: Mapping[str, Any], negatives: Sequence[Document]) -> Fields:
    """Replace a row's negatives, in its format; scores of the old ones are dropped."""
    if "positive_passages" in fields:
        passages = [{"docid": found.id, "title": found.title, "text": found.text} for found in negatives]
        return {**fields, "negative_passages": passages}
    kept = {name: value for name, value in fields.items() if not _tells_negatives(name)}
    positive = next(name for name in POSITIVE_FIELDS if fields.get(name) is not None)
    texts = [found.passage for found in negatives]
    if isinstance(fields[positive], list):
        name = "negative" if positive == "positive" else "neg"
        return {**kept, name: texts, "neg_ids": [found.id for found in negatives]}
    return {**kept, **{f"negative_{number}": text for number, text in enumerate(texts, 1)}}


def _tells_negatives(name: str) -> bool:
    return name in (*NEGATIVE_FIELDS, "neg_ids", "neg_scores") or NUMBERED_NEGATIVE.fullmatch(name) is not None


def write_rows(path: Path, rows: Iterable[Fields]) -> None:
    """Rows into a ``.jsonl`` (streamed), ``.csv``, ``.tsv`` or ``.parquet``; a table has the columns of all rows."""
    writers = {".csv": _write_csv, ".tsv": _write_csv, ".parquet": _write_parquet}
    writers.get(path.suffix, _write_jsonl)(path, rows)


def _write_jsonl(path: Path, rows: Iterable[Fields]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _columns(rows: Iterable[Fields]) -> list[str]:
    """The names of all fields, in order of appearance."""
    return list(dict.fromkeys(chain.from_iterable(rows)))


def _write_csv(path: Path, rows: Iterable[Fields]) -> None:
    """In a ``.tsv`` a tab or a line's end in a text becomes a blank, as its readers split at each of them."""
    every = list(rows)
    columns = _columns(every)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(every)
            return
        file.write("\t".join(columns) + "\n")
        for row in every:
            cells = (quoted(_BREAK.sub(" ", str(row.get(name) or ""))) for name in columns)
            file.write("\t".join(cells) + "\n")


def _write_parquet(path: Path, rows: Iterable[Fields]) -> None:
    every = list(rows)
    columns = _columns(every)
    table = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in every])
    pq.write_table(table, path, row_group_size=_ROWS_AT_ONCE)
