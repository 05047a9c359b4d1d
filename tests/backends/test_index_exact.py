"""What is the exact index's own: bounded memory, ties, its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conformance.index_suite import Blocks, backend_or_skip, brute_force, unit_vectors

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import IndexBackend, IndexOptions


def exact() -> type[IndexBackend]:
    """The exact index, which is always there."""
    return backend_or_skip("exact")


class TestExact:
    def test_streams_when_only_built_and_when_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many blocks and many chunks of queries, cut at odd places, give what one of each gives."""
        vectors, queries = unit_vectors(3000), unit_vectors(100, seed=1)
        whole = exact().build(Blocks(vectors), IndexOptions())
        expected = whole.search(queries, 20)
        monkeypatch.setattr(f"{exact().__module__}._BLOCK_ROWS", 256)
        monkeypatch.setattr(f"{exact().__module__}.SCORES_AT_ONCE", 256 * 40)
        whole.save(tmp_path)
        for index in (whole, exact().load(tmp_path, IndexOptions())):
            hits = index.search(queries, 20)
            np.testing.assert_array_equal(hits.rows, expected.rows)
            np.testing.assert_array_equal(hits.scores, expected.scores)
        np.testing.assert_array_equal(expected.rows, brute_force(vectors, queries, 20).rows)

    @pytest.mark.parametrize("k", [1, 3, 17, 255, 256, 600])
    def test_ties_at_the_cut_go_to_the_lowest_rows(self, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Few different vectors, in many blocks: nearly every cut is between equal scores."""
        drawn = np.random.default_rng(2).integers(0, 3, size=2000)
        vectors, queries = unit_vectors(3)[drawn], unit_vectors(20, seed=1)
        monkeypatch.setattr(f"{exact().__module__}._BLOCK_ROWS", 256)
        hits = exact().build(Blocks(vectors, 123), IndexOptions()).search(queries, k)
        np.testing.assert_array_equal(hits.rows, brute_force(vectors, queries, k).rows)

    def test_zero_and_negative_scores_are_in_order(self) -> None:
        vectors = np.array([[-1, 0], [0, 1], [-0.0, -1], [1, 0], [0.0, 1], [-0.5, 0]], dtype=np.float32)
        hits = exact().build(Blocks(vectors), IndexOptions()).search(np.array([[1, 0]], np.float32), 6)
        assert hits.rows.tolist() == [[3, 1, 2, 4, 5, 0]]
        assert hits.scores.tolist() == [[1, 0, 0, 0, -0.5, -1]]

    def test_a_score_does_not_depend_on_what_is_beside_it(self) -> None:
        """Neither on the other queries nor on the other vectors: else duplicates could differ in the last bit."""
        vectors, queries = unit_vectors(1111, 100), unit_vectors(40, 100, seed=1)
        index = exact().build(Blocks(vectors), IndexOptions())
        together = index.search(queries, 30)
        for number in range(0, 40, 13):
            alone = index.search(queries[number : number + 1], 30)
            np.testing.assert_array_equal(alone.scores[0], together.scores[number])
        few = exact().build(Blocks(vectors[together.rows[0]]), IndexOptions()).search(queries[:1], 30)
        np.testing.assert_array_equal(few.scores[0], together.scores[0])

    def test_its_file_is_a_plain_array(self, tmp_path: Path) -> None:
        vectors = unit_vectors(700)
        exact().build(Blocks(vectors), IndexOptions()).save(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["vectors.npy"]
        array = np.load(tmp_path / "vectors.npy", allow_pickle=False)
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, vectors)

    def test_loading_reads_no_vector(self, tmp_path: Path) -> None:
        index = exact().build(Blocks(unit_vectors(10)), IndexOptions())
        index.save(tmp_path)
        (block,) = exact().load(tmp_path, IndexOptions())._vectors  # type: ignore[attr-defined]
        assert isinstance(block.base, np.memmap) or isinstance(block, np.memmap)

    @pytest.mark.parametrize(
        "array", [np.zeros((3, 2)), np.zeros(3, np.float32), np.zeros((3, 2), np.float32, order="F")]
    )
    def test_another_array_is_damage(self, tmp_path: Path, array: np.ndarray) -> None:
        np.save(tmp_path / "vectors.npy", array)
        with pytest.raises(LlaraError, match="damaged"):
            exact().load(tmp_path, IndexOptions())

    def test_takes_no_spec(self) -> None:
        with pytest.raises(UserError, match=r"IVF16.*faiss"):
            exact().build(Blocks(unit_vectors(10)), IndexOptions("IVF16,Flat"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
    def test_cuda_needs_a_gpu(self) -> None:
        with pytest.raises(UserError, match="cpu"):
            exact().build(Blocks(unit_vectors(10)), IndexOptions(device="cuda"))

    def test_knows_the_dtypes_of_a_gpu(self) -> None:
        options = IndexOptions(parameters={"dtype": "fp8"})
        with pytest.raises(UserError, match=r"fp8.*fp32, fp16, bf16"):
            exact().build(Blocks(unit_vectors(10)), options)
        with pytest.raises(UserError, match=r"fp8.*fp32, fp16, bf16"):
            exact().build(Blocks(unit_vectors(10)), IndexOptions()).search(unit_vectors(1), 1, {"dtype": "fp8"})

    def test_searches_in_fp32_on_the_cpu(self, tmp_path: Path) -> None:
        """What was saved for a GPU does not matter; what is asked for is refused."""
        vectors, queries = unit_vectors(100), unit_vectors(5, seed=1)
        options = IndexOptions(parameters={"dtype": "fp16"})
        exact().build(Blocks(vectors), options).save(tmp_path)
        index = exact().load(tmp_path, options)
        expected = exact().build(Blocks(vectors), IndexOptions()).search(queries, 10)
        np.testing.assert_array_equal(index.search(queries, 10).scores, expected.scores)
        with pytest.raises(UserError, match=r"fp16.*cuda"):
            index.search(queries, 10, {"dtype": "fp16"})
