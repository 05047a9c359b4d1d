"""What is the FAISS index's own: specs and their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance.index_suite import Blocks, backend_or_skip, brute_force, unit_vectors

from llara_cli.core.errors import UserError
from llara_cli.core.protocols import IndexBackend, IndexOptions


class TestFaiss:
    @pytest.fixture
    def faiss(self) -> type[IndexBackend]:
        return backend_or_skip("faiss")

    @pytest.mark.parametrize("spec", ["nonsense", "Flat,", "PQ7", "LSH"])
    def test_names_a_bad_spec(self, faiss: type[IndexBackend], spec: str) -> None:
        with pytest.raises(UserError, match=spec) as caught:
            faiss.build(Blocks(unit_vectors(10)), IndexOptions(spec))
        assert ".cpp" not in str(caught.value)

    def test_a_corpus_too_small_to_train_on(self, faiss: type[IndexBackend]) -> None:
        with pytest.raises(UserError, match=r"IVF64,Flat.*63 vectors.*fewer lists"):
            faiss.build(Blocks(unit_vectors(63)), IndexOptions("IVF64,Flat"))

    @pytest.mark.parametrize("spec", ["SQ8", "IVF4,SQ8", "IVF4,Flat,RFlat", "L2norm,Flat"])
    def test_other_specs_find_about_the_same(self, faiss: type[IndexBackend], spec: str, tmp_path: Path) -> None:
        vectors, queries = unit_vectors(1000), unit_vectors(20, seed=1)
        parameters = {"nprobe": 4} if spec.startswith("IVF") else {}
        index = faiss.build(Blocks(vectors), IndexOptions(spec, parameters))
        index.save(tmp_path)
        rows = faiss.load(tmp_path, IndexOptions(spec, parameters)).search(queries, 10).rows
        expected = brute_force(vectors, queries, 10).rows
        assert np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]) >= 8.5

    @pytest.mark.parametrize("length", [0.05, 1.0, 30.0])
    @pytest.mark.parametrize("dim", [24, 768])
    def test_equal_vectors_have_equal_scores_in_a_graph(
        self, faiss: type[IndexBackend], dim: int, length: float
    ) -> None:
        copies = 20
        vectors = np.tile(unit_vectors(10, dim), (copies, 1)) * np.float32(length)
        queries = np.concatenate([unit_vectors(20, dim, seed=1), vectors[:5]])
        hits = faiss.build(Blocks(vectors), IndexOptions("HNSW32")).search(queries, 3 * copies)
        groups = hits.rows.reshape(len(queries), 3, copies)
        assert (np.diff(groups, axis=2) == 10).all()
        assert (np.diff(hits.scores.reshape(groups.shape), axis=2) == 0).all()
        exact = np.einsum("qd,qkd->qk", queries, vectors[hits.rows])
        np.testing.assert_allclose(hits.scores, exact, rtol=0, atol=1e-6 * length**2)

    def test_a_graph_takes_products_that_overflow(self, faiss: type[IndexBackend]) -> None:
        index = faiss.build(Blocks(unit_vectors(200)), IndexOptions("HNSW32"))
        queries = unit_vectors(3, seed=1)
        assert (index.search(queries * np.float32(1e20), 5).rows[:, 0] == index.search(queries, 5).rows[:, 0]).all()

    @pytest.mark.parametrize("spec", ["OPQ8,IVF4,PQ8x4,RFlat", "PCA12,L2norm,IVF4,SQ8", "PQ4x4,RFlat", "RR16,SQ8"])
    def test_a_spec_of_several_parts_is_trained_in_each(self, faiss: type[IndexBackend], spec: str) -> None:
        vectors = unit_vectors(1000)
        index = faiss.build(Blocks(vectors), IndexOptions(spec, {"nprobe": 4} if "IVF" in spec else {}))
        rows = index.search(vectors[:50], 1).rows[:, 0]
        assert np.mean(rows == np.arange(50)) >= 0.9

    @pytest.mark.parametrize("spec", ["HNSW8,PQ4x4", "IVF4,ITQ8,SH"])
    def test_an_index_that_ranks_by_distance_is_refused(self, faiss: type[IndexBackend], spec: str) -> None:
        with pytest.raises(UserError, match="by distance"):
            faiss.build(Blocks(unit_vectors(1000)), IndexOptions(spec))

    def test_nprobe_at_search_and_as_saved_default(self, faiss: type[IndexBackend], tmp_path: Path) -> None:
        """More lists looked at find more; what one search is told does not last; what the build is told does."""
        vectors, queries = unit_vectors(1000), unit_vectors(40, seed=1)
        index = faiss.build(Blocks(vectors), IndexOptions("IVF32,Flat", {"nprobe": 1}))
        expected = brute_force(vectors, queries, 10).rows
        few = index.search(queries, 10).rows
        np.testing.assert_array_equal(index.search(queries, 10, {"nprobe": 32}).rows, expected)
        np.testing.assert_array_equal(index.search(queries, 10).rows, few)
        assert (few != expected).any()
        index.save(tmp_path)
        np.testing.assert_array_equal(faiss.load(tmp_path, IndexOptions()).search(queries, 10).rows, few)
        all_lists = faiss.load(tmp_path, IndexOptions(parameters={"nprobe": 32}))
        np.testing.assert_array_equal(all_lists.search(queries, 10).rows, expected)

    def test_looks_at_more_than_one_list_unless_told(self, faiss: type[IndexBackend]) -> None:
        vectors, queries = unit_vectors(1000), unit_vectors(40, seed=1)
        index = faiss.build(Blocks(vectors), IndexOptions("IVF16,Flat"))
        expected = index.search(queries, 10, {"nprobe": 4}).rows
        np.testing.assert_array_equal(index.search(queries, 10).rows, expected)

    def test_ef_and_ef_construction_reach_the_graph(self, faiss: type[IndexBackend]) -> None:
        vectors, queries = unit_vectors(1000, 48), unit_vectors(40, 48, seed=1)
        poor = faiss.build(Blocks(vectors), IndexOptions("HNSW4", {"ef_construction": 4}))
        good = faiss.build(Blocks(vectors), IndexOptions("HNSW4", {"ef_construction": 400}))
        expected = brute_force(vectors, queries, 1).rows
        least, most = poor.search(queries, 1, {"ef": 1}).rows, good.search(queries, 1, {"ef": 1000}).rows
        assert (least == expected).mean() < (most == expected).mean()
        assert (good.search(queries, 1, {"ef": 1}).rows == expected).mean() < (most == expected).mean()
        assert (poor.search(queries, 1, {"ef": 100}).rows == expected).mean() < (most == expected).mean()

    @pytest.mark.parametrize("spec", ["HNSW16", "PCA12,HNSW16", "L2norm,HNSW16"])
    def test_a_small_graph_is_the_same_each_time(self, faiss: type[IndexBackend], spec: str, tmp_path: Path) -> None:
        vectors, files = unit_vectors(3000), []
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
            faiss.build(Blocks(vectors), IndexOptions(spec)).save(tmp_path / name)
            files.append((tmp_path / name / "index.faiss").read_bytes())
        assert files[0] == files[1] == files[2]

    def test_a_flat_index_is_not_searched_when_it_is_built(
        self, faiss: type[IndexBackend], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import faiss as library

        asked: list[int] = []
        plain = library.IndexFlat.search
        monkeypatch.setattr(library.IndexFlat, "search", lambda *given: (asked.append(1), plain(*given))[1])
        index = faiss.build(Blocks(unit_vectors(10)), IndexOptions("Flat"))
        assert not asked
        index.search(unit_vectors(1), 3)
        assert asked

    def test_ef_is_saved(self, faiss: type[IndexBackend], tmp_path: Path) -> None:
        vectors, queries = unit_vectors(1500, 64), unit_vectors(40, 64, seed=1)
        index = faiss.build(Blocks(vectors), IndexOptions("HNSW4", {"ef": 1, "ef_construction": 8}))
        few, more = index.search(queries, 3).rows, index.search(queries, 3, {"ef": 500}).rows
        assert (few != more).any()
        index.save(tmp_path)
        np.testing.assert_array_equal(faiss.load(tmp_path, IndexOptions()).search(queries, 3).rows, few)

    def test_what_is_not_found_has_no_score(self, faiss: type[IndexBackend]) -> None:
        """One list of four holds fewer than are wanted."""
        index = faiss.build(Blocks(unit_vectors(40)), IndexOptions("IVF4,Flat", {"nprobe": 1}))
        hits = index.search(unit_vectors(5, seed=1), 40)
        missing = hits.rows == -1
        assert missing.any()
        assert (hits.scores[missing] == -np.inf).all()
        assert np.isfinite(hits.scores[~missing]).all()

    @pytest.mark.parametrize(("spec", "names"), [("Flat", []), ("IVF4,Flat", ["nprobe"]), ("HNSW8", ["ef"])])
    def test_knows_what_makes_it_find_more(self, faiss: type[IndexBackend], spec: str, names: list[str]) -> None:
        index, queries = faiss.build(Blocks(unit_vectors(200)), IndexOptions(spec)), unit_vectors(5, seed=1)
        before = index.search(queries, 20).rows
        assert list(index.widening) == names
        np.testing.assert_array_equal(index.search(queries, 20).rows, before)

    @pytest.mark.parametrize(
        ("spec", "name", "there"),
        [("Flat", "nprobe", "none"), ("HNSW8", "nprobe", "ef"), ("IVF4,Flat", "ef_construction", "nprobe")],
    )
    def test_names_the_parameters_of_a_spec(self, faiss: type[IndexBackend], spec: str, name: str, there: str) -> None:
        with pytest.raises(UserError, match=rf"{spec}.*{name}.*it has: {there}"):
            faiss.build(Blocks(unit_vectors(100)), IndexOptions(spec, {name: 4}))

    def test_a_parameter_of_another_spec_at_search(self, faiss: type[IndexBackend]) -> None:
        index = faiss.build(Blocks(unit_vectors(100)), IndexOptions("Flat"))
        with pytest.raises(UserError, match=r"Flat.*ef"):
            index.search(unit_vectors(1), 3, {"ef": 64})

    @pytest.mark.parametrize("value", [0, -3, "many"])
    def test_parameters_out_of_range(self, faiss: type[IndexBackend], value: int | str) -> None:
        with pytest.raises(UserError, match="nprobe"):
            faiss.build(Blocks(unit_vectors(100)), IndexOptions("IVF4,Flat", {"nprobe": value}))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
    def test_lists_on_a_gpu_are_learnt_from_as_many_vectors_as_on_a_cpu(
        self, faiss: type[IndexBackend], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A GPU's index does not tell its lists; here an index of replicas, which does not either, is in its place."""
        import faiss as library

        def moved(resources: object, device: int, index: Any) -> Any:
            there = library.IndexReplicas(index.d, False)
            there.addIndex(index)
            assert library.try_extract_index_ivf(there) is None
            return there

        asked: list[int] = []
        train = library.IndexReplicas.train
        monkeypatch.setattr(library.IndexReplicas, "train", lambda *given: (asked.append(len(given[1])), train(*given)))
        monkeypatch.setattr(library, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(library, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(library, "index_cpu_to_gpu", moved, raising=False)
        vectors = Blocks(unit_vectors(70_000, 4))
        assert faiss.build(vectors, IndexOptions("IVF1050,Flat", device="cuda")).count == 70_000
        assert asked == [64 * 1050]  # above the 65,536 for indexes without lists

    def test_cuda_needs_another_faiss(self, faiss: type[IndexBackend]) -> None:
        with pytest.raises(UserError, match=r"faiss-gpu"):
            faiss.build(Blocks(unit_vectors(10)), IndexOptions(device="cuda"))
