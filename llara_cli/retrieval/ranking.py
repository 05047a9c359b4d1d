"""From an index's rows to ranked document ids; equal scores by ascending id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import IndexBackend, Parameters, Vectors

Ranking = list[tuple[str, float]]
"""(document id, score), best first, ties by ascending id."""
RowRanking = list[tuple[str, float, int]]
"""(document id, score, row in the index), best first, ties by ascending id."""
HITS_AT_ONCE = 1 << 20
"""Most hits in memory at once (queries x hits per query)."""
_NONE = np.zeros(0, np.int64)
HitT = TypeVar("HitT", bound=tuple[Any, ...])


def best_first(hits: Iterable[HitT], k: int, drop: str | None = None) -> list[HitT]:
    """The k best of the hits ``(document id, score, ...)``: descending scores, ties by ascending id.

    ``drop``: a document to leave out.
    """
    kept = hits if drop is None else (hit for hit in hits if hit[0] != drop)
    return sorted(kept, key=lambda hit: (-hit[1], hit[0]))[:k]


@dataclass
class Shortfall:
    """Counts queries that got fewer hits than asked for from an approximate index that holds more.

    Attributes:
        queries: their number.
        wanted: hits asked for per query, at most as many as the index holds.
        settings: search parameters of the index that, when raised, find more.
    """

    queries: int = 0
    wanted: int = 0
    settings: Sequence[str] = ()

    def add(self, wanted: int, settings: Sequence[str]) -> None:
        """Count a query."""
        self.queries += 1
        self.wanted, self.settings = wanted, settings

    def message(self, queries: int) -> str:
        """The text of a warning; ``queries``: number of all queries."""
        found = f"{self.queries} of {queries} queries got fewer than {self.wanted} hits"
        return f"{found}: the index searched only part of its vectors"


def rank(
    index: IndexBackend,
    queries: Vectors,
    ids: Sequence[str],
    k: int,
    parameters: Parameters | None = None,
    drop: Sequence[str | None] | None = None,
    shortfall: Shortfall | None = None,
) -> Iterator[Ranking]:
    """``rank_rows`` without the rows."""
    found = rank_rows(index, queries, ids, k, parameters, drop, shortfall=shortfall)
    return ([(document, score) for document, score, _ in ranking] for ranking in found)


def rank_rows(
    index: IndexBackend,
    queries: Vectors,
    ids: Sequence[str],
    k: int,
    parameters: Parameters | None = None,
    drop: Sequence[str | None] | None = None,
    removed: NDArray[np.int64] = _NONE,
    shortfall: Shortfall | None = None,
) -> Iterator[RowRanking]:
    """The k best documents of each query (queries, dim), in the order of the queries.

    ``ids``: the document of each row of the index. ``drop``: for each query a document to leave out (the query itself,
    if it is in the corpus), or None. ``removed``: sorted rows to leave out of all results. ``shortfall`` counts the
    queries for which the index finds too few. Raises ``UserError`` for a ``k`` below 1 and for what the index refuses.
    """
    if k < 1:
        raise UserError(f"the number of hits must be positive, not {k}")
    if len(ids) != index.count:
        raise LlaraError(f"the index holds {index.count} vectors, but there are {len(ids)} ids: build the index again")
    top = _TopK(index, ids, k, parameters, removed, Shortfall() if shortfall is None else shortfall)
    # One more than needed, and one for a dropped document, show whether the cut falls between equal scores.
    wanted = k + 1 + (drop is not None)
    depth = wanted * len(ids) // max(1, len(ids) - len(removed))
    return top.rankings(queries, drop or [None] * len(queries), depth)


@dataclass(frozen=True)
class _TopK:
    """Finds the k best rows of each query in one index."""

    index: IndexBackend
    ids: Sequence[str]
    k: int
    parameters: Parameters | None
    removed: NDArray[np.int64]
    shortfall: Shortfall

    def rankings(self, queries: Vectors, drop: Sequence[str | None], depth: int) -> Iterator[RowRanking]:
        """Search in chunks that limit the hits in memory; ``depth``: hits to fetch first."""
        depth = min(depth, self.index.count)
        step = max(1, HITS_AT_ONCE // depth)
        for start in range(0, len(queries), step):
            yield from self._chunk(queries[start : start + step], drop[start : start + step], depth)

    def _chunk(self, queries: Vectors, drop: Sequence[str | None], depth: int) -> list[RowRanking]:
        """Rankings of a chunk. Queries whose cut falls between equal scores are searched again, at twice the depth."""
        hits = self.index.search(queries, depth, self.parameters)
        found = [self._ranking(*answer, depth) for answer in zip(hits.scores, hits.rows, drop, strict=True)]
        split = [number for number, ranking in enumerate(found) if ranking is None]
        deeper = self.rankings(queries[split], [drop[number] for number in split], 2 * depth) if split else iter(())
        return [next(deeper) if ranking is None else ranking for ranking in found]

    def _ranking(
        self, scores: NDArray[np.float32], rows: NDArray[np.int64], dropped: str | None, depth: int
    ) -> RowRanking | None:
        """The best k of one query's hits, or None if hits that were not fetched may be among them."""
        there = int((rows >= 0).sum())
        gone = np.isin(rows[:there], self.removed)
        found = zip(rows[:there][~gone].tolist(), scores[:there][~gone].tolist(), strict=True)
        ranking = [(name, score, row) for row, score in found if (name := self.ids[row]) != dropped]
        complete = there < depth or depth == self.index.count
        if not complete and (len(ranking) <= self.k or ranking[self.k - 1][1] == ranking[-1][1]):
            return None
        # The dropped document may be among those that were not fetched.
        wanted = min(self.k, self.index.count - len(self.removed) - (dropped is not None))
        if there < depth and len(ranking) < wanted:
            self.shortfall.add(wanted, self.index.widening)
        return best_first(ranking, self.k)
