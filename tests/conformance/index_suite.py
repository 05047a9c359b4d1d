"""What every index backend must do: subclass ``IndexConformance`` and say which backend.

class TestMyIndex(IndexConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        return Case(MyIndex, IndexOptions(spec="..."), recall=0.95)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from llara_cli.core import registry
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import Hits, IndexBackend, IndexOptions, VectorBlocks, Vectors

COUNT, DIM, QUERIES, K = 1000, 24, 40, 10
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Blocks:
    """A matrix as a stream of blocks of ``size`` rows."""

    matrix: Vectors
    size: int = 300

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.matrix)

    @property
    def dim(self) -> int:
        """Columns."""
        return int(self.matrix.shape[1])

    def __iter__(self) -> Iterator[Vectors]:
        for start in range(0, len(self.matrix), self.size):
            yield self.matrix[start : start + self.size].copy()


def unit_vectors(count: int, dim: int = DIM, seed: int = 0) -> Vectors:
    """(count, dim) random directions."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def brute_force(vectors: Vectors, queries: Vectors, k: int) -> Hits:
    """The definition: inner products (in float64), falling, equal ones by ascending row."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Hits(np.take_along_axis(scores, rows, axis=1).astype(np.float32), rows.astype(np.int64))


def backend_or_skip(name: str) -> type[IndexBackend]:
    """The backend; the test is skipped where its library is not installed."""
    try:
        backend: type[IndexBackend] = registry.load("index", name)
    except UserError as error:
        pytest.skip(str(error))
    return backend


@dataclass(frozen=True)
class Case:
    """A backend under test. ``recall``: the share of brute force's hits to find; 1: the very same hits, in order."""

    backend: type[IndexBackend]
    options: IndexOptions = field(default_factory=IndexOptions)
    recall: float = 1.0

    def build(self, vectors: Vectors, block_rows: int = 300) -> IndexBackend:
        """An index of the backend."""
        return self.backend.build(Blocks(vectors, block_rows), self.options)

    def reload(self, index: IndexBackend, folder: Path) -> IndexBackend:
        """The index, saved and loaded."""
        folder.mkdir()
        index.save(folder)
        return self.backend.load(folder, self.options)


class IndexConformance:
    """The suite; a subclass gives ``case``."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        """The backend under test."""
        raise NotImplementedError

    @pytest.fixture
    def vectors(self) -> Vectors:
        """What is indexed."""
        return unit_vectors(COUNT)

    @pytest.fixture
    def queries(self) -> Vectors:
        """What is searched for."""
        return unit_vectors(QUERIES, seed=1)

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, case: Case) -> IndexBackend:
        """One index for the tests that only search."""
        return case.build(unit_vectors(COUNT))

    def test_has_the_name_of_its_entry_point(self, case: Case) -> None:
        assert case.backend.name
        assert issubclass(case.backend, IndexBackend)

    def test_knows_its_size(self, index: IndexBackend) -> None:
        assert (index.count, index.dim) == (COUNT, DIM)

    def test_what_makes_it_find_more_are_search_parameters(self, case: Case, index: IndexBackend) -> None:
        assert set(index.widening) <= set(case.backend.search_parameters)

    def test_answers_in_the_shape_of_the_contract(self, index: IndexBackend, queries: Vectors) -> None:
        hits = index.search(queries, K)
        assert hits.scores.shape == hits.rows.shape == (QUERIES, K)
        assert hits.scores.dtype == np.float32
        assert hits.rows.dtype == np.int64
        assert (np.diff(hits.scores, axis=1) <= 0).all()
        assert all(len(set(row)) == K for row in hits.rows.tolist())

    def test_agrees_with_brute_force(self, case: Case, index: IndexBackend, vectors: Vectors, queries: Vectors) -> None:
        expected, hits = brute_force(vectors, queries, K), index.search(queries, K)
        found = [len(set(a) & set(b)) for a, b in zip(hits.rows.tolist(), expected.rows.tolist(), strict=True)]
        assert sum(found) / (QUERIES * K) >= case.recall
        if case.recall == 1:
            np.testing.assert_array_equal(hits.rows, expected.rows)

    def test_scores_are_inner_products(self, index: IndexBackend, vectors: Vectors, queries: Vectors) -> None:
        hits = index.search(queries, K)
        products = np.einsum("qd,qkd->qk", queries, vectors[hits.rows])
        np.testing.assert_allclose(hits.scores, products, atol=TOLERANCE)

    def test_finds_each_vector_by_itself(self, case: Case, index: IndexBackend, vectors: Vectors) -> None:
        rows = np.arange(0, COUNT, 25)
        hits = index.search(vectors[rows], 1)
        assert (hits.rows[:, 0] == rows).mean() >= case.recall

    def test_searches_the_same_again(self, index: IndexBackend, queries: Vectors) -> None:
        first, again = index.search(queries, K), index.search(queries, K)
        np.testing.assert_array_equal(first.rows, again.rows)
        np.testing.assert_array_equal(first.scores, again.scores)

    def test_one_query_or_many(self, index: IndexBackend, queries: Vectors) -> None:
        together = index.search(queries, K)
        alone = [index.search(queries[number : number + 1], K) for number in range(5)]
        np.testing.assert_array_equal(together.rows[:5], np.concatenate([hits.rows for hits in alone]))
        scores = np.concatenate([hits.scores for hits in alone])
        np.testing.assert_allclose(together.scores[:5], scores, atol=TOLERANCE)

    def test_no_query(self, index: IndexBackend) -> None:
        hits = index.search(np.empty((0, DIM), np.float32), K)
        assert hits.rows.shape == hits.scores.shape == (0, K)

    def test_does_not_change_the_queries(self, index: IndexBackend, queries: Vectors) -> None:
        before = queries.copy()
        index.search(queries, K)
        np.testing.assert_array_equal(queries, before)

    def test_is_the_same_after_saving(self, case: Case, index: IndexBackend, queries: Vectors, tmp_path: Path) -> None:
        loaded = case.reload(index, tmp_path / "index")
        before, after = index.search(queries, K), loaded.search(queries, K)
        assert (loaded.count, loaded.dim) == (COUNT, DIM)
        np.testing.assert_array_equal(before.rows, after.rows)
        np.testing.assert_array_equal(before.scores, after.scores)

    def test_equal_runs_give_equal_files(self, case: Case, vectors: Vectors, tmp_path: Path) -> None:
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder in folders:
            case.reload(case.build(vectors), folder)
        one, two = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
        assert one == two

    @pytest.mark.parametrize("block_rows", [1, 7, COUNT])
    def test_how_the_stream_is_cut_does_not_matter(
        self, case: Case, index: IndexBackend, vectors: Vectors, queries: Vectors, block_rows: int
    ) -> None:
        expected, hits = index.search(queries, K), case.build(vectors, block_rows).search(queries, K)
        assert (hits.rows == expected.rows).mean() >= case.recall

    @pytest.mark.parametrize("saved", [False, True])
    def test_appended_vectors_are_found(
        self, case: Case, vectors: Vectors, queries: Vectors, tmp_path: Path, saved: bool
    ) -> None:
        index = case.build(vectors[:700])
        index = case.reload(index, tmp_path / "first") if saved else index
        try:
            index.append(Blocks(vectors[700:], 130))
        except UserError as error:
            pytest.skip(str(error))
        index = case.reload(index, tmp_path / "second") if saved else index
        expected, hits = brute_force(vectors, queries, K), index.search(queries, K)
        found = [len(set(a) & set(b)) for a, b in zip(hits.rows.tolist(), expected.rows.tolist(), strict=True)]
        assert (index.count, index.dim) == (COUNT, DIM)
        assert sum(found) / (QUERIES * K) >= case.recall
        products = np.einsum("qd,qkd->qk", queries, vectors[hits.rows])
        np.testing.assert_allclose(hits.scores, products, atol=TOLERANCE)

    def test_vectors_of_another_width_are_not_appended(self, case: Case, vectors: Vectors, queries: Vectors) -> None:
        index = case.build(vectors)
        with pytest.raises(UserError):
            index.append(Blocks(unit_vectors(10, DIM + 1)))
        assert index.search(queries, K).rows.max() < COUNT == index.count

    @pytest.mark.parametrize("saved", [False, True])
    def test_more_hits_wanted_than_there_are(self, case: Case, queries: Vectors, tmp_path: Path, saved: bool) -> None:
        index = case.build(unit_vectors(5))
        index = case.reload(index, tmp_path / "index") if saved else index
        hits = index.search(queries, 8)
        assert hits.rows.shape == hits.scores.shape == (QUERIES, 8)
        assert np.sort(hits.rows[:, :5]).tolist() == [[0, 1, 2, 3, 4]] * QUERIES
        assert (hits.rows[:, 5:] == -1).all()
        assert (hits.scores[:, 5:] == -np.inf).all()
        assert np.isfinite(hits.scores[:, :5]).all()

    def test_every_vector_wanted(self, index: IndexBackend, queries: Vectors) -> None:
        hits = index.search(queries[:3], COUNT)
        assert np.sort(hits.rows).tolist() == [list(range(COUNT))] * 3

    def test_one_vector(self, case: Case, queries: Vectors) -> None:
        (vector,) = unit_vectors(1)
        hits = case.build(vector[None]).search(queries, 2)
        assert hits.rows.tolist() == [[0, -1]] * QUERIES
        np.testing.assert_allclose(hits.scores[:, 0], queries @ vector, atol=TOLERANCE)

    def test_duplicates_are_ordered_by_row(self, case: Case, queries: Vectors) -> None:
        copies = 20
        vectors = np.tile(unit_vectors(10), (copies, 1))
        hits = case.build(vectors).search(queries, 3 * copies)
        for scores, rows in zip(hits.scores, hits.rows, strict=True):
            assert len(set(scores.tolist())) == 3
            assert [group.tolist() for group in np.diff(rows.reshape(3, copies))] == [[10] * (copies - 1)] * 3

    def test_all_vectors_equal(self, case: Case, queries: Vectors) -> None:
        """An approximate index may find fewer here (equal vectors link to each other only), but these in order."""
        vectors = np.repeat(unit_vectors(1), 300, axis=0)
        for rows in case.build(vectors).search(queries, 300).rows:
            found = rows[rows >= 0]
            assert len(found) == 300 or case.recall < 1
            assert (np.diff(found) > 0).all()
            assert (rows[len(found) :] == -1).all()

    @pytest.mark.parametrize("width", [1, DIM - 1, DIM + 1])
    def test_refuses_queries_of_another_width(self, index: IndexBackend, width: int) -> None:
        with pytest.raises(UserError, match=rf"\b{width}\b.*\b{DIM}\b"):
            index.search(unit_vectors(2, width), K)

    def test_refuses_one_query_without_its_row(self, index: IndexBackend, queries: Vectors) -> None:
        with pytest.raises(UserError, match="width"):
            index.search(queries[0], K)

    def test_refuses_vectors_of_another_width(self, case: Case) -> None:
        class Uneven(Blocks):
            def __iter__(self) -> Iterator[Vectors]:
                yield self.matrix[:50]
                yield unit_vectors(50, DIM + 3)

        with pytest.raises(UserError, match=rf"\b{DIM + 3}\b.*\b{DIM}\b"):
            case.backend.build(Uneven(unit_vectors(100)), case.options)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_refuses_what_is_no_number(self, case: Case, index: IndexBackend, vectors: Vectors, bad: float) -> None:
        broken = vectors.copy()
        broken[777, 3] = bad
        with pytest.raises(UserError, match=r"777.*NaN"):
            case.build(broken)
        with pytest.raises(UserError, match=r"\b2\b.*NaN"):
            index.search(broken[775:780], K)

    def test_refuses_an_empty_stream(self, case: Case) -> None:
        with pytest.raises(UserError):
            case.build(np.empty((0, DIM), np.float32))

    @pytest.mark.parametrize("announced", [90, 110])
    def test_refuses_another_number_of_vectors(self, case: Case, announced: int) -> None:
        class Miscounted(Blocks):
            @property
            def count(self) -> int:
                return announced

        with pytest.raises(UserError):
            case.backend.build(Miscounted(unit_vectors(100)), case.options)

    @pytest.mark.parametrize("k", [0, -1])
    def test_refuses_no_hits(self, index: IndexBackend, queries: Vectors, k: int) -> None:
        with pytest.raises(UserError):
            index.search(queries, k)

    def test_refuses_parameters_that_it_does_not_know(self, case: Case, index: IndexBackend, queries: Vectors) -> None:
        options = IndexOptions(case.options.spec, {"no_such_parameter": 1}, case.options.device)
        stream: VectorBlocks = Blocks(unit_vectors(50))
        with pytest.raises(UserError, match="no_such_parameter"):
            case.backend.build(stream, options)
        with pytest.raises(UserError, match="no_such_parameter"):
            index.search(queries, K, {"no_such_parameter": 1})

    def test_refuses_an_unknown_device(self, case: Case) -> None:
        options = IndexOptions(case.options.spec, case.options.parameters, "abacus")
        with pytest.raises(UserError, match="abacus"):
            case.backend.build(Blocks(unit_vectors(50)), options)

    def test_a_missing_file_is_damage(self, case: Case, tmp_path: Path) -> None:
        with pytest.raises(LlaraError):
            case.backend.load(tmp_path, case.options)

    @pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.999])
    def test_a_cut_off_file_is_damage(self, case: Case, index: IndexBackend, tmp_path: Path, kept: float) -> None:
        index.save(tmp_path)
        largest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
        content = largest.read_bytes()
        largest.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(LlaraError):
            case.backend.load(tmp_path, case.options)

    @pytest.mark.skipif(sys.platform == "win32", reason="limits the size of a file")
    @pytest.mark.parametrize("missing", [1, 2000])
    def test_what_cannot_be_written_whole_is_an_error(
        self, case: Case, index: IndexBackend, tmp_path: Path, missing: int
    ) -> None:
        """A full disk must not leave a part that passes for an index."""
        import resource

        for name in ("whole", "part"):
            (tmp_path / name).mkdir()
        index.save(tmp_path / "whole")
        size = max(file.stat().st_size for file in (tmp_path / "whole").iterdir())
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, before[1]))
        try:
            with pytest.raises((OSError, LlaraError)):
                index.save(tmp_path / "part")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
