"""Ranked document ids: ties by id, cuts between equal scores, documents to leave out, chunks of queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import Hits, IndexBackend, IndexOptions, Parameters, VectorBlocks, Vectors
from llara_cli.retrieval import ranking
from llara_cli.retrieval.ranking import Shortfall, rank, rank_rows


class TableIndex(IndexBackend):
    """An index that looks scores up: a query's one number says which row of ``table`` (queries, documents) is its."""

    name = "table"

    def __init__(self, table: np.typing.ArrayLike, finds: int | None = None) -> None:
        self.table = np.array(table, dtype=np.float32)
        self.finds = self.count if finds is None else finds
        self.searches: list[tuple[int, int]] = []
        self.parameters: list[Parameters | None] = []

    @classmethod
    def build(cls, vectors: VectorBlocks, options: IndexOptions) -> IndexBackend:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, options: IndexOptions) -> IndexBackend:
        raise NotImplementedError

    @property
    def count(self) -> int:
        return int(self.table.shape[1])

    @property
    def dim(self) -> int:
        return 1

    @property
    def widening(self) -> Sequence[str]:
        return ["probes"]

    def search(self, queries: Vectors, k: int, parameters: Parameters | None = None) -> Hits:
        self.searches.append((len(queries), k))
        self.parameters.append(parameters)
        scores = self.table[queries[:, 0].astype(int)]
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, rows, axis=1)
        rows[:, self.finds :], scores[:, self.finds :] = -1, -np.inf
        return Hits(scores, rows)

    def queries(self) -> Vectors:
        """One query for each row of the table."""
        return np.arange(len(self.table), dtype=np.float32)[:, None]


def expected(
    table: np.ndarray, ids: Sequence[str], k: int, drop: Sequence[str | None]
) -> list[list[tuple[str, float]]]:
    """The definition: all documents but the dropped one, by falling score, then rising id, cut at k."""
    return [
        sorted(
            ((name, float(score)) for name, score in zip(ids, scores, strict=True) if name != dropped),
            key=lambda hit: (-hit[1], hit[0]),
        )[:k]
        for scores, dropped in zip(table, drop, strict=True)
    ]


def test_best_first_with_ids() -> None:
    index = TableIndex([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    answers = list(rank(index, index.queries(), ["a", "b", "c"], 2))
    assert [[name for name, _ in hits] for hits in answers] == [["b", "c"], ["a", "b"]]
    assert answers[0][0][1] == float(np.float32(0.9))


def test_ties_are_ordered_by_id_not_by_row() -> None:
    index = TableIndex([[0.5, 0.5, 0.5, 0.9]])
    assert list(rank(index, index.queries(), ["c", "a", "b", "z"], 4)) == [
        [("z", pytest.approx(0.9)), ("a", 0.5), ("b", 0.5), ("c", 0.5)]
    ]


def test_ids_are_ordered_as_strings() -> None:
    index = TableIndex([[1, 1, 1]])
    assert [name for name, _ in next(rank(index, index.queries(), ["9", "10", "2"], 3))] == ["10", "2", "9"]


def test_a_tie_that_the_cut_divides_goes_to_the_lowest_ids() -> None:
    """The rows that come first have the highest ids: only a deeper search finds the others."""
    count = 100
    ids = [f"{count - row:03}" for row in range(count)]
    index = TableIndex([[1.0] * 2 + [0.5] * (count - 3) + [0.1]])
    (hits,) = rank(index, index.queries(), ids, 5)
    assert [name for name, _ in hits] == ["099", "100", "002", "003", "004"]
    assert [depth for _, depth in index.searches] == [6, 12, 24, 48, 96, 100]


def test_searches_deeper_only_for_the_queries_that_need_it() -> None:
    index = TableIndex([np.linspace(1, 0, 50).tolist(), [0.5] * 50, np.linspace(0, 1, 50).tolist()])
    answers = list(rank(index, index.queries(), [f"{row:02}" for row in range(50)], 3))
    assert [hits[0][0] for hits in answers] == ["00", "00", "49"]
    assert index.searches == [(3, 4), (1, 8), (1, 16), (1, 32), (1, 50)]


def test_no_second_search_where_the_cut_is_clear() -> None:
    index = TableIndex([[0.9, 0.9, 0.8, 0.7]])
    list(rank(index, index.queries(), ["b", "a", "c", "d"], 2))
    assert index.searches == [(1, 3)]


def test_more_wanted_than_there_are() -> None:
    index = TableIndex([[0.1, 0.2]])
    (hits,) = rank(index, index.queries(), ["a", "b"], 10)
    assert [name for name, _ in hits] == ["b", "a"]


def test_an_index_that_finds_fewer() -> None:
    """The rows of -1 of an approximate index are no hits, and not searched for again."""
    index = TableIndex([[0.5] * 20], finds=3)
    (hits,) = rank(index, index.queries(), [f"{row:02}" for row in range(20)], 10)
    assert [name for name, _ in hits] == ["00", "01", "02"]
    assert len(index.searches) == 1


def test_queries_that_got_too_little_are_counted_once() -> None:
    index = TableIndex([np.linspace(1, 0, 20).tolist()] * 3, finds=3)
    ids, short = [f"{row:02}" for row in range(20)], Shortfall()
    list(rank(index, index.queries(), ids, 10, shortfall=short))
    assert short == Shortfall(3, 10, ["probes"])
    assert short.message(3).startswith("3 of 3 queries got fewer than 10 hits")
    list(rank(index, index.queries()[:1], ids, 1000, shortfall=short))
    assert short == Shortfall(4, 20, ["probes"]), "as many as there are, not as were asked for"


@pytest.mark.parametrize(
    ("finds", "k", "drop", "removed"),
    [
        (20, 10, None, ()),  # it looks at all
        (20, 1000, None, ()),  # there are no more
        (3, 3, None, ()),  # enough
        (17, 1000, None, (17, 18, 19)),  # the others were removed
        (19, 1000, "19", ()),  # the other is the query itself
    ],
)
def test_fewer_hits_that_have_another_reason_are_not_counted(
    finds: int, k: int, drop: str | None, removed: Sequence[int]
) -> None:
    index, short = TableIndex([np.linspace(1, 0, 20).tolist()], finds=finds), Shortfall()
    gone = np.array(removed, np.int64)
    ids = [f"{row:02}" for row in range(20)]
    list(rank_rows(index, index.queries(), ids, k, drop=[drop], removed=gone, shortfall=short))
    assert short.queries == 0


def test_the_document_to_drop_makes_room_for_the_next() -> None:
    index = TableIndex([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.9, 0.8, 0.7]])
    answers = list(rank(index, index.queries(), ["a", "b", "c"], 2, drop=["a", None, "c", "elsewhere"]))
    assert [[name for name, _ in hits] for hits in answers] == [["b", "c"], ["a", "b"], ["a", "b"], ["a", "b"]]


@pytest.mark.parametrize("cells", [1, 7, 1 << 20])
@pytest.mark.parametrize("k", [1, 2, 5, 19, 20, 40])
def test_follows_the_definition(k: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random scores of few values, random ids, some of them dropped, in chunks of any size."""
    monkeypatch.setattr(ranking, "HITS_AT_ONCE", cells)
    random = np.random.default_rng(k)
    table = random.integers(0, 4, size=(30, 20)) / 4
    ids = [str(number) for number in random.permutation(20)]
    drop = [str(random.integers(0, 20)) if random.random() < 0.5 else None for _ in range(30)]
    index = TableIndex(table)
    assert list(rank(index, index.queries(), ids, k, drop=drop)) == expected(table, ids, k, drop)
    assert list(rank(index, index.queries(), ids, k)) == expected(table, ids, k, [None] * 30)
    assert max(queries * depth for queries, depth in index.searches) <= max(cells, 20)


@pytest.mark.parametrize("gone", [0, 1, 10, 19])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_removed_rows_are_in_no_answer(k: int, gone: int) -> None:
    random = np.random.default_rng(k + gone)
    table = random.integers(0, 4, size=(30, 20)) / 4
    ids = [str(number) for number in random.permutation(20)]
    removed = np.sort(random.choice(20, gone, replace=False))
    living = np.setdiff1d(np.arange(20), removed)
    index = TableIndex(table)
    wanted = expected(table[:, living], [ids[row] for row in living], k, [None] * 30)
    found = list(rank_rows(index, index.queries(), ids, k, removed=removed))
    assert [[(name, score) for name, score, _ in hits] for hits in found] == wanted
    assert all(ids[row] == name for hits in found for name, _, row in hits)


def test_parameters_reach_every_search() -> None:
    index = TableIndex([[0.5] * 9])
    list(rank(index, index.queries(), list("abcdefghi"), 2, {"ef": 7}))
    assert len(index.parameters) > 1
    assert all(parameters == {"ef": 7} for parameters in index.parameters)


def test_no_query() -> None:
    index = TableIndex([[0.5]])
    assert list(rank(index, np.empty((0, 1), np.float32), ["a"], 5)) == []


def test_refuses_no_hits() -> None:
    index = TableIndex([[0.5]])
    with pytest.raises(UserError, match="positive"):
        rank(index, index.queries(), ["a"], 0)


def test_ids_of_another_index_are_a_fault() -> None:
    index = TableIndex([[0.5, 0.4]])
    with pytest.raises(LlaraError, match=r"2 vectors.*1 ids"):
        rank(index, index.queries(), ["a"], 1)
