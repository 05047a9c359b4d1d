"""BM25, the lexical baseline, by bm25s (extra ``bm25``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llara_cli.console import UserError
from llara_cli.registry import missing_extra

# Anserini's (Lucene's) settings, which published baselines use: BM25 without the constant k1 + 1, k1 0.9, b 0.4,
# Porter's stemmer, the 33 stop words of Lucene (they are bm25s' list "en"), and words of one letter kept.
METHOD, K1, B = "lucene", 0.9, 0.4
STEMMER, STOP_WORDS, WORD = "porter", "en", r"(?u)\b\w+\b"


class Bm25:
    """A corpus, searched by its words. On SciFact: nDCG@10 0.677 (Anserini, flat: 0.679)."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Index ``texts`` under ``ids``.

        Raises ``UserError`` where the extra is not installed, and for a corpus without a single word.
        """
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise missing_extra("BM25", "bm25") from error
        self._tokenize = bm25s.tokenize
        self._stemmer = Stemmer.Stemmer(STEMMER)
        # Kept in the order of ids: then equal scores are in the order wanted when rows are.
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self._ids = [ids[row] for row in order]
        words = self._words([texts[row] for row in order], as_ids=True)
        if not words.vocab.keys() - {""}:
            raise UserError("BM25: the corpus has no word to search for")
        self._model = bm25s.BM25(k1=K1, b=B, method=METHOD)
        self._model.index(words, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> Iterator[list[tuple[str, float]]]:
        """The k best documents of each query as (id, score), best first, equal scores by ascending id.

        Documents that share no word with the query are no hits, so there may be fewer than k.
        """
        if k < 1:
            raise UserError(f"the number of hits must be positive, not {k}")
        return (self._best(query, k) for query in queries)

    def _best(self, query: str, k: int) -> list[tuple[str, float]]:
        (words,) = self._words([query], as_ids=False)
        if not words:
            return []
        scores = self._model.get_scores(words)
        hits = np.flatnonzero(scores > 0)
        if len(hits) > k:
            least = np.partition(scores[hits], -k)[-k]
            hits = hits[scores[hits] >= least]
        hits = hits[np.argsort(-scores[hits], kind="stable")][:k]
        return [(self._ids[row], float(scores[row])) for row in hits]

    def _words(self, texts: list[str], *, as_ids: bool) -> Any:
        return self._tokenize(
            texts,
            token_pattern=WORD,
            stopwords=STOP_WORDS,
            stemmer=self._stemmer,
            return_ids=as_ids,
            show_progress=False,
        )
