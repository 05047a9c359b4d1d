"""BM25, the lexical baseline, by bm25s (extra ``bm25``)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np

from llara_cli.core.errors import UserError
from llara_cli.core.registry import missing_extra
from llara_cli.data.documents import Document
from llara_cli.retrieval.ranking import best_first

# Anserini's (Lucene's) settings, which published baselines use: BM25 without the constant k1 + 1, k1 0.9, b 0.4,
# Porter's stemmer, the 33 stop words of Lucene (they are bm25s' list "en"), and words of one letter kept.
METHOD, K1, B = "lucene", 0.9, 0.4
STEMMER, STOP_WORDS, WORD = "porter", "en", r"(?u)\b\w+\b"
_AT_ONCE = 4096
"""Texts that are tokenized together, and in memory at once."""


def check_installed() -> None:
    """Raise ``UserError`` if the extra is not installed."""
    if find_spec("bm25s") is None or find_spec("Stemmer") is None:
        raise missing_extra("BM25", "bm25")


class Words:
    """The words of a corpus as numbers in one array: 4 bytes each, a tenth of what lists of lists would take.

    ``ids``: a list of numbers per document; ``vocab``: word -> number. bm25s indexes an object of this form.
    """

    def __init__(self, texts: Iterable[str], cut: Any) -> None:
        self.vocab: dict[str, int] = {}
        self._numbers, self._ends = array("i"), array("q", [0])
        left = iter(texts)
        while block := list(islice(left, _AT_ONCE)):
            for words in cut(block):
                self._numbers.extend([self.vocab.setdefault(word, len(self.vocab)) for word in words])
                self._ends.append(len(self._numbers))

    @property
    def ids(self) -> Words:
        """The object itself, which is a sequence of one list per document."""
        return self

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for start, end in zip(self._ends, self._ends[1:], strict=False):
            yield self._numbers[start:end].tolist()


class Bm25:
    """A corpus, searched by its words. On SciFact: nDCG@10 0.677 (Anserini, flat: 0.679)."""

    def __init__(self, ids: Sequence[str], texts: Iterable[str]) -> None:
        """Index ``texts``, which are read once and not kept, under ``ids``, which may grow while they are read.

        Raises ``UserError`` if the extra is not installed, and for a corpus without a single word.
        """
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise missing_extra("BM25", "bm25") from error
        self._cut = partial(
            bm25s.tokenize,
            token_pattern=WORD,
            stopwords=STOP_WORDS,
            stemmer=Stemmer.Stemmer(STEMMER),
            return_ids=False,
            show_progress=False,
        )
        words = Words(texts, self._cut)
        if not words.vocab.keys() - {""}:
            raise UserError("BM25: the corpus has no word to search for")
        self.ids = ids
        self._model = bm25s.BM25(k1=K1, b=B, method=METHOD)
        self._model.index(words, show_progress=False)

    @classmethod
    def over(cls, documents: Iterable[Document]) -> Bm25:
        """Index a stream of documents, keeping only their ids."""
        ids: list[str] = []

        def texts() -> Iterator[str]:
            for document in documents:
                ids.append(document.id)
                yield document.passage

        return cls(ids, texts())

    def search(self, queries: Iterable[str], k: int) -> Iterator[list[tuple[str, float]]]:
        """The k best documents of each query as (id, score), best first, equal scores by ascending id.

        Documents that share no word with the query are no hits, so there may be fewer than k.
        """
        if k < 1:
            raise UserError(f"the number of hits must be positive, not {k}")
        return (self._best(query, k) for query in queries)

    def _best(self, query: str, k: int) -> list[tuple[str, float]]:
        (words,) = self._cut([query])
        if not words:
            return []
        scores = self._model.get_scores(words)
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            least = np.partition(scores[rows], -k)[-k]
            rows = rows[scores[rows] >= least]
        hits = [(self.ids[row], float(scores[row])) for row in rows.tolist()]
        return best_first(hits, k)
