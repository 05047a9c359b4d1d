"""Hard negatives: candidates from an index of the workspace or from BM25, and which of them are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from llara_cli.core.errors import UserError
from llara_cli.core.input_digests import input_record
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import Document, read_documents
from llara_cli.data.text_files import Note, ignore
from llara_cli.data.training_rows import TrainingRow
from llara_cli.retrieval.bm25 import Bm25
from llara_cli.retrieval.config import MineConfig
from llara_cli.retrieval.ranking import RowRanking
from llara_cli.retrieval.searcher import Searcher


class CandidateSource(Protocol):
    """A source of candidates.

    Attributes:
        name: the model's name, or bm25.
        parents: fingerprints of what is searched, by kind.
        searched: names of what is searched, by kind.
    """

    name: str
    parents: dict[str, str]
    searched: dict[str, str]

    def get_ready(self, *, margin: bool) -> None:
        """Load everything that a search needs, so that errors come early.

        Raises ``UserError`` if that fails, or if there is a ``margin`` and positives have no score.
        """

    def find(self, queries: Sequence[str], k: int) -> Iterator[RowRanking]:
        """The k best documents of each query: id, score, row."""

    def best_positives(self, rows: Sequence[TrainingRow]) -> list[float]:
        """Score of each row's best positive."""

    def document(self, row: int) -> Document:
        """The document of a row."""

    def warn_of_shortfall(self, queries: int) -> None:
        """Warn if some of ``queries`` queries got fewer hits than asked for."""


class IndexCandidates:
    """An index of the workspace."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self.name = searcher.source.name
        self.searched = {"index": searcher.index.name}
        self.parents = {"index": searcher.index.fingerprint, "model": searcher.source.fingerprint()}

    def get_ready(self, *, margin: bool) -> None:
        """Load model and index."""
        _ = self._searcher.encoder, self._searcher.backend

    def find(self, queries: Sequence[str], k: int) -> Iterator[RowRanking]:
        """The nearest vectors."""
        return self._searcher.rank(queries, k)

    def best_positives(self, rows: Sequence[TrainingRow]) -> list[float]:
        """Cosine similarity of each query and the nearest of its positives."""
        queries = self._searcher.embed([row.query for row in rows], "query")
        passages = self._searcher.embed([text for row in rows for text in row.positives], "passage")
        ends = np.cumsum([len(row.positives) for row in rows])[:-1]
        parts = zip(queries, np.split(passages, ends), strict=True)
        return [float((part @ query).max()) for query, part in parts]

    def warn_of_shortfall(self, queries: int) -> None:
        """Warn of an approximate index' shortfall."""
        self._searcher.warn_of_shortfall(queries)

    def document(self, row: int) -> Document:
        """The document in the embeddings behind the index."""
        index_rows = self._searcher.index_rows
        text = index_rows.text(row)
        return Document(index_rows.ids[row], text["title"], text["text"])


class Bm25Candidates:
    """BM25 over a corpus, which is held in memory."""

    name = "bm25"

    def __init__(self, corpus: Path, note: Note = ignore) -> None:
        """``note``: called with what the user should know of the corpus."""
        file = BeirFolder(corpus).corpus if corpus.is_dir() else corpus
        self.parents = {"corpus": str(input_record(file)["sha256"])}
        self.searched = {"corpus": file.name}
        self._file = file
        self._note = note

    @cached_property
    def _documents(self) -> list[Document]:
        return list(read_documents(self._file, self._note))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {document.id: row for row, document in enumerate(self._documents)}

    @cached_property
    def _index(self) -> Bm25:
        return Bm25([document.id for document in self._documents], [document.passage for document in self._documents])

    def get_ready(self, *, margin: bool) -> None:
        """Read the corpus. BM25 scores only what is in it, which a positive need not be."""
        if margin:
            raise UserError("`margin` compares cosines: mine with a dense model, not with bm25")
        _ = self._index

    def find(self, queries: Sequence[str], k: int) -> Iterator[RowRanking]:
        """Documents that share words with the query."""
        return ([(name, score, self._rows[name]) for name, score in hits] for hits in self._index.search(queries, k))

    def best_positives(self, rows: Sequence[TrainingRow]) -> list[float]:
        """Not available: see ``get_ready``."""
        raise NotImplementedError

    def warn_of_shortfall(self, queries: int) -> None:
        """Do nothing: BM25 scores every document."""

    def document(self, row: int) -> Document:
        """From memory."""
        return self._documents[row]


@dataclass(frozen=True)
class KnownPositives:
    """The known positives of a query, by id and by text; the texts include the query itself."""

    ids: set[str]
    texts: set[str]

    def hold(self, document: Document) -> bool:
        """Whether a document is one of them; a row's positive may lack the title."""
        return document.id in self.ids or not self.texts.isdisjoint({document.passage, document.text.strip()})


def known_positives(rows: Iterable[TrainingRow]) -> dict[str, KnownPositives]:
    """The positives of each query from all its rows: in pairs and triplets, each row has only one of several."""
    found: dict[str, KnownPositives] = {}
    for row in rows:
        known = found.setdefault(row.query, KnownPositives(set(), {row.query.strip()}))
        known.ids.update(name for name in row.positive_ids if name is not None)
        known.texts.update(text.strip() for text in row.positives)
    return found


def choose_negatives(
    known: KnownPositives,
    hits: RowRanking,
    source: CandidateSource,
    settings: MineConfig,
    seed: Sequence[int],
    best: float | None,
) -> list[int]:
    """Choose negatives: rows of the index, best first, without known positives (by id or text) and the query itself.

    ``best``: the score of the best positive, if there is a margin. From the hits after ``skip_top``, ``per_query`` are
    drawn with ``seed``.
    """
    limit = np.inf if best is None or settings.margin is None else best - settings.margin
    left = [
        place
        for name, score, place in hits
        if name not in known.ids and score <= limit and not known.hold(source.document(place))
    ][settings.skip_top :]
    if len(left) <= settings.per_query:
        return left
    draw = np.random.default_rng(list(seed)).choice(len(left), settings.per_query, replace=False)
    return [left[place] for place in sorted(draw)]
