"""``search``: a query, or a file of them, against an index of the workspace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llara_cli.core.errors import UserError
from llara_cli.core.output_files import check_output, open_output
from llara_cli.data.documents import read_documents
from llara_cli.data.runs import write_jsonl_run, write_trec_run
from llara_cli.retrieval.searcher import Searcher

WINDOW = 1024
"""Queries of a file that are encoded and searched together."""
RUN_FORMATS = {"trec": write_trec_run, "jsonl": write_jsonl_run}


def search_query(searcher: Searcher, text: str, k: int) -> dict[str, Any]:
    """Hits of one query, with their texts. Raises ``UserError`` for a query that is not UTF-8."""
    if not text.isprintable() and any("\ud800" <= mark <= "\udfff" for mark in text):
        raise UserError("the query is not UTF-8: set the terminal, or the locale, to UTF-8")
    (hits,) = searcher.hits([text], k)
    return {"index": searcher.index.name, "query": text, "hits": hits}


def search_queries(searcher: Searcher, path: Path, output: Path, k: int, form: str) -> dict[str, Any]:
    """Search every query of a file and write a run. Raises ``UserError`` for a bad file or format."""
    if form not in RUN_FORMATS:
        raise UserError(f"unknown `format={form!r}`: known are {', '.join(RUN_FORMATS)}")
    check_output(output, searcher.workspace.root, [path, Path(searcher.source.path)])
    queries = [(document.id, document.passage) for document in read_documents(path, searcher.workspace.reporter.note)]
    started = time.monotonic()
    _ = searcher.encoder, searcher.backend  # loaded here, as that shows a status line of its own
    with searcher.workspace.reporter.bar("searching", len(queries), unit="queries") as bar:
        RUN_FORMATS[form](output, _ranked(searcher, queries, k, bar.advance), searcher.source.name, open_output)
    searcher.warn_of_shortfall(len(queries))
    seconds = round(time.monotonic() - started, 3)
    return {
        "index": searcher.index.name,
        "queries": str(path),
        "count": len(queries),
        "output": str(output),
        "seconds": seconds,
    }


def _ranked(
    searcher: Searcher, queries: Sequence[tuple[str, str]], k: int, progress: Any
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    for start in range(0, len(queries), WINDOW):
        window = queries[start : start + WINDOW]
        ranked = searcher.rank([text for _, text in window], k)
        for (query_id, _), hits in zip(window, ranked, strict=True):
            progress()
            yield query_id, [(document, score) for document, score, _ in hits]
