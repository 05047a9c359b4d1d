"""The exact index's way on a GPU, run on a CPU: vectors that stay, vectors that are streamed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance.index_suite import Blocks, Case, IndexConformance, brute_force, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from llara_backends import index_exact_gpu as gpu
from llara_backends.index_exact import ExactIndex
from llara_backends.index_topk import keys_held
from llara_cli.core.protocols import IndexOptions, VectorBlocks, Vectors

CPU = torch.device("cpu")
KINDS = [gpu.Resident, gpu.Streamed]
MUCH = 1 << 40


class AsResident(ExactIndex):
    """Searches as on a GPU with room for all vectors."""

    def __init__(self, vectors: VectorBlocks, options: IndexOptions) -> None:
        super().__init__(vectors, options)
        self._gpu = gpu.GpuSearch(CPU, warnings.warn, lambda _: MUCH)


class AsStreamed(ExactIndex):
    """Searches as on a GPU with room for none."""

    def __init__(self, vectors: VectorBlocks, options: IndexOptions) -> None:
        super().__init__(vectors, options)
        self._gpu = gpu.GpuSearch(CPU, lambda _: None, lambda _: 0)


class TestConformance(IndexConformance):
    @pytest.fixture(scope="class", params=[AsResident, AsStreamed])
    @classmethod
    def case(cls, request: pytest.FixtureRequest) -> Case:
        return Case(request.param)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(list(gpu.DTYPES.values())),
    count=st.integers(1, 1500),
    cut=st.integers(1, 600),
    k=st.integers(1, 1600),
    queries=st.integers(1, 20),
    rows=st.sampled_from([256, 512, 2048]),
    cells=st.sampled_from([1, 20_000, 100_000, 1 << 28]),
    seed=st.integers(0, 100),
)
def test_finds_what_brute_force_finds(
    kind: type, dtype: torch.dtype, count: int, cut: int, k: int, queries: int, rows: int, cells: int, seed: int
) -> None:
    """Small whole numbers, whose products every dtype holds: many ties, zeros of both signs, and no rounding."""
    draw = np.random.default_rng(seed)
    vectors = draw.integers(-1, 2, (count, 4)).astype(np.float32) * np.float32(-1)
    asked = draw.integers(-2, 3, (queries, 4)).astype(np.float32)
    hits = gpu.search(kind(Blocks(vectors, cut), dtype, CPU), asked, k, rows, cells)
    expected, there = brute_force(vectors, asked, k), min(k, count)
    np.testing.assert_array_equal(hits.rows[:, :there], expected.rows)
    np.testing.assert_array_equal(hits.scores[:, :there], expected.scores)
    assert (hits.rows[:, there:] == -1).all()
    assert hits.rows.shape == (queries, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "rounding"), [("fp32", 0), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_scores_are_those_of_rounded_vectors(kind: type, dtype: str, rounding: float) -> None:
    vectors, queries = unit_vectors(2000), unit_vectors(20, seed=1)
    hits = gpu.search(kind(Blocks(vectors), gpu.DTYPES[dtype], CPU), queries, 50, 512)
    rounded = [torch.from_numpy(each).to(gpu.DTYPES[dtype]).float().numpy() for each in (vectors, queries)]
    expected = brute_force(*rounded, 50)
    np.testing.assert_allclose(hits.scores, expected.scores, atol=1e-6)
    assert (hits.rows == expected.rows).mean() > 0.99
    np.testing.assert_allclose(hits.scores, brute_force(vectors, queries, 50).scores, atol=rounding + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_of_a_walk_is_of_one_shape(kind: type) -> None:
    """So that one kernel multiplies them all; each vector counts once."""
    blocks = list(kind(Blocks(unit_vectors(1200)), torch.float32, CPU).blocks(1024))
    assert len({block.vectors.shape for block in blocks}) == 1
    counted = [row for block in blocks for row in range(block.first + block.start, block.first + block.stop)]
    assert counted == list(range(1200))


def test_takes_a_file_that_must_not_be_written(tmp_path: Path) -> None:
    vectors = unit_vectors(700)
    ExactIndex.build(Blocks(vectors), IndexOptions()).save(tmp_path)
    hits = AsResident.load(tmp_path, IndexOptions()).search(vectors[:3], 1)
    assert hits.rows.tolist() == [[0], [1], [2]]


def test_vectors_stay_where_room_is_left() -> None:
    needed = gpu.ROOM + 1024 * 8 * 4  # 1,000 vectors of 8 numbers, filled up
    assert [gpu.choose(free, 1000, 8, 4) for free in (0, needed - 1, needed)] == ["streamed", "streamed", "resident"]


def test_half_the_bytes_fit_where_all_do_not() -> None:
    assert [gpu.choose(gpu.ROOM + 4 * 10**9, 2_000_000, 768, size) for size in (4, 2)] == ["streamed", "resident"]


class Walked:
    """A stream that counts its walks; the first may run out of memory, as an upload can."""

    def __init__(self, matrix: Vectors, *, fails: bool = False) -> None:
        self.matrix, self.fails, self.walks = matrix, fails, 0
        self.count, self.dim = matrix.shape
        self.precisions: set[str] = set()

    def __iter__(self) -> Iterator[Vectors]:
        self.walks += 1
        self.precisions.add(torch.get_float32_matmul_precision())
        yield self.matrix[:100]
        if self.fails and self.walks == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        yield self.matrix[100:]


def test_vectors_are_read_once_for_all_searches() -> None:
    stream, queries = Walked(unit_vectors(500)), unit_vectors(3, seed=1)
    search = gpu.GpuSearch(CPU, warnings.warn, lambda _: MUCH)
    for _ in range(3):
        search.search(stream, torch.float32, queries, 5)
    assert stream.walks == 1
    search.search(stream, torch.float16, queries, 5)
    assert stream.walks == 2


def test_appended_vectors_are_found_after_a_search() -> None:
    vectors = unit_vectors(900)
    index = AsResident.build(Blocks(vectors[:500]), IndexOptions())
    assert index.search(vectors[700:701], 1).rows[0, 0] < 500
    index.append(Blocks(vectors[500:]))
    assert index.search(vectors[700:701], 1).rows.tolist() == [[700]]


def test_where_memory_is_short_the_vectors_are_streamed_and_it_is_said_once() -> None:
    heard: list[str] = []
    stream, queries = Walked(unit_vectors(500)), unit_vectors(3, seed=1)
    search = gpu.GpuSearch(CPU, heard.append, lambda _: 0)
    found = [search.search(stream, torch.float32, queries, 5).rows.tolist() for _ in range(2)]
    assert found == [brute_force(stream.matrix, queries, 5).rows.tolist()] * 2
    assert stream.walks == 2
    assert len(heard) == 1
    assert "do not fit" in heard[0]
    assert "dtype=fp16" in heard[0]


def test_memory_that_is_gone_at_the_upload_ends_nothing() -> None:
    heard: list[str] = []
    stream, queries = Walked(unit_vectors(500), fails=True), unit_vectors(3, seed=1)
    hits = gpu.GpuSearch(CPU, heard.append, lambda _: MUCH).search(stream, torch.float32, queries, 5)
    assert hits.rows.tolist() == brute_force(stream.matrix, queries, 5).rows.tolist()
    assert len(heard) == 1


def test_products_are_of_full_precision_whatever_is_allowed_elsewhere() -> None:
    stream = Walked(unit_vectors(500))
    torch.set_float32_matmul_precision("high")
    try:
        gpu.search(gpu.Streamed(stream, torch.float32, CPU), unit_vectors(1), 1)
        assert stream.precisions == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("setting", ["backends.cuda.matmul", "backends"])
def test_tf32_may_be_allowed_by_the_newer_setting(setting: str) -> None:
    """In a process of its own: PyTorch does not let the two ways of setting it be mixed."""
    code = (
        f"import torch; torch.{setting}.fp32_precision = 'tf32'; from llara_backends.index_exact_gpu import _no_tf32\n"
        "with _no_tf32(): print(torch.backends.cuda.matmul.allow_tf32)\n"
        "print(torch.backends.cuda.matmul.fp32_precision)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "tf32"]


@pytest.mark.parametrize("queries", [1, 10, 100, 1000, 100_000])
@pytest.mark.parametrize("k", [1, 100, 1000, 1 << 17])
def test_scores_and_keys_are_bounded(queries: int, k: int) -> None:
    size, rows = gpu.shape_of_scores(queries, k, gpu.BLOCK_ROWS, gpu.CELLS)
    assert 1 <= size <= queries
    assert rows >= gpu.BLOCK_ROWS
    assert size * (rows + 6 * keys_held(rows, k)) <= gpu.CELLS


def test_one_query_is_compared_with_all_vectors_at_once() -> None:
    assert gpu.shape_of_scores(1, 100, gpu.BLOCK_ROWS, gpu.CELLS)[1] > 50_000_000
