"""The exact index on a GPU finds what brute force finds, with vectors that stay and vectors that are streamed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conformance.index_suite import Blocks, Case, IndexConformance, backend_or_skip, brute_force, unit_vectors

from llara_backends import index_exact_gpu as gpu
from llara_cli.core.protocols import IndexOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FREE: dict[str, Callable[[torch.device], int]] = {"resident": gpu.free_bytes, "streamed": lambda _: 0}


def search_on(placed: str) -> gpu.GpuSearch:
    """A search whose vectors stay on the card, or do not."""
    return gpu.GpuSearch(torch.device("cuda"), lambda _: None, FREE[placed])


class TestConformance(IndexConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        return Case(backend_or_skip("exact"), IndexOptions(device="cuda"))


@pytest.mark.parametrize("queries", [1, 7, 300])
@pytest.mark.parametrize("dtype", list(gpu.DTYPES.values()), ids=list(gpu.DTYPES))
@pytest.mark.parametrize("placed", list(FREE))
def test_ties_in_many_blocks(placed: str, dtype: torch.dtype, queries: int) -> None:
    """Small whole numbers, whose products every dtype holds: the hits are exact."""
    draw = np.random.default_rng(0)
    vectors = draw.integers(-1, 2, (300_001, 16)).astype(np.float32)
    asked = draw.integers(-2, 3, (queries, 16)).astype(np.float32)
    hits = search_on(placed).search(Blocks(vectors, 70_000), dtype, asked, 100)
    few = slice(0, queries, 60)
    expected = brute_force(vectors, asked[few], 100)
    np.testing.assert_array_equal(hits.rows[few], expected.rows)
    np.testing.assert_array_equal(hits.scores[few], expected.scores)


@pytest.mark.parametrize("queries", [1, 7, 300])
@pytest.mark.parametrize("dtype", list(gpu.DTYPES.values()), ids=list(gpu.DTYPES))
@pytest.mark.parametrize("placed", list(FREE))
def test_equal_vectors_have_equal_scores(placed: str, dtype: torch.dtype, queries: int) -> None:
    """In every place of every block: else copies would come in the order of rounding."""
    different, copies = 50_000, 6
    vectors = np.tile(unit_vectors(different, 100), (copies, 1))
    hits = search_on(placed).search(Blocks(vectors, 70_000), dtype, unit_vectors(queries, 100, seed=1), 10 * copies)
    for rows in hits.rows:
        assert (np.diff(rows.reshape(10, copies)) == different).all()


@pytest.mark.parametrize("placed", list(FREE))
@pytest.mark.parametrize(("dtype", "rounding"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_scores_are_near_those_of_the_cpu(placed: str, dtype: str, rounding: float) -> None:
    """TF32 would be 1e-3 off."""
    vectors, queries = unit_vectors(20_000, 768), unit_vectors(50, 768, seed=1)
    torch.set_float32_matmul_precision("high")
    try:
        hits = search_on(placed).search(Blocks(vectors), gpu.DTYPES[dtype], queries, 10)
    finally:
        torch.set_float32_matmul_precision("highest")
    expected = backend_or_skip("exact").build(Blocks(vectors), IndexOptions()).search(queries, 10)
    np.testing.assert_allclose(hits.scores, expected.scores, atol=rounding)


def test_too_little_memory_for_the_upload_ends_nothing() -> None:
    """Room for a search, but not for 2 GB of vectors; what is free does not show it."""
    vectors, heard = np.tile(unit_vectors(1000, 256), (2000, 1)), list[str]()
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.8e9 / torch.cuda.get_device_properties(device).total_memory)
    try:
        search = gpu.GpuSearch(device, heard.append)
        hits = search.search(Blocks(vectors, 100_000), torch.float32, vectors[:2], 3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert hits.rows.tolist() == [[0, 1000, 2000], [1, 1001, 2001]]
    assert len(heard) == 1
