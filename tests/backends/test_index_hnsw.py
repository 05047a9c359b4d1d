"""What is the hnswlib index's own: its parameters, and graphs that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conformance.index_suite import Blocks, backend_or_skip, brute_force, unit_vectors

from llara_cli.core.errors import UserError
from llara_cli.core.protocols import IndexBackend, IndexOptions


class TestHnsw:
    @pytest.fixture
    def hnsw(self) -> type[IndexBackend]:
        return backend_or_skip("hnsw")

    def test_is_for_the_cpu(self, hnsw: type[IndexBackend]) -> None:
        with pytest.raises(UserError, match="CPU only"):
            hnsw.build(Blocks(unit_vectors(10)), IndexOptions(device="cuda"))

    def test_takes_no_spec(self, hnsw: type[IndexBackend]) -> None:
        with pytest.raises(UserError, match="HNSW32"):
            hnsw.build(Blocks(unit_vectors(10)), IndexOptions("HNSW32"))

    def test_parameters_reach_the_graph(self, hnsw: type[IndexBackend], tmp_path: Path) -> None:
        vectors, queries = unit_vectors(1500, 64), unit_vectors(40, 64, seed=1)
        expected = brute_force(vectors, queries, 10).rows

        def recall(parameters: dict[str, int], ef: int | None) -> float:
            index = hnsw.build(Blocks(vectors), IndexOptions(parameters=parameters))
            rows = index.search(queries, 10, None if ef is None else {"ef": ef}).rows
            return float(np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]))

        thin = {"M": 3, "ef_construction": 5}
        assert recall(thin, 10) < recall({"M": 32, "ef_construction": 5}, 10)
        assert recall({"M": 4, "ef_construction": 8}, 10) < recall({"M": 4, "ef_construction": 300}, 10)
        assert recall(thin, 10) < recall(thin, 300)
        assert recall({**thin, "ef": 300}, None) == recall(thin, 300)

    def test_ef_is_saved_and_can_be_told_anew(self, hnsw: type[IndexBackend], tmp_path: Path) -> None:
        vectors, queries = unit_vectors(1500, 64), unit_vectors(40, 64, seed=1)
        index = hnsw.build(Blocks(vectors), IndexOptions(parameters={"M": 3, "ef_construction": 5, "ef": 1}))
        index.save(tmp_path)
        few = index.search(queries, 10).rows
        np.testing.assert_array_equal(hnsw.load(tmp_path, IndexOptions()).search(queries, 10).rows, few)
        more = hnsw.load(tmp_path, IndexOptions(parameters={"M": 3, "ef": 500})).search(queries, 10).rows
        assert (more != few).any()
        np.testing.assert_array_equal(index.search(queries, 10, {"ef": 500}).rows, more)

    def test_the_seed_makes_the_graph(self, hnsw: type[IndexBackend], tmp_path: Path) -> None:
        content = []
        for seed in (1, 1, 2):
            hnsw.build(Blocks(unit_vectors(300)), IndexOptions(parameters={"seed": seed})).save(tmp_path)
            content.append((tmp_path / "index.bin").read_bytes())
        assert content[0] == content[1] != content[2]

    def test_a_graph_that_does_not_lead_everywhere(self, hnsw: type[IndexBackend]) -> None:
        """Many duplicates and few links: hnswlib gives up, and every vector is looked at."""
        vectors, queries = np.repeat(unit_vectors(5), 200, axis=0), unit_vectors(3, seed=1)
        index = hnsw.build(Blocks(vectors), IndexOptions(parameters={"M": 2, "ef_construction": 10}))
        hits = index.search(queries, 1000)
        np.testing.assert_array_equal(hits.rows, brute_force(vectors, queries, 1000).rows)
