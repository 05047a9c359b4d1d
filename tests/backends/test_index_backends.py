"""The conformance suite on every index backend installed, and on what FAISS makes of other specs."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance.index_suite import Blocks, Case, IndexConformance, backend_or_skip, unit_vectors

from llara_cli.core import registry
from llara_cli.core.errors import LlaraError
from llara_cli.core.protocols import IndexOptions

RECALL = {"exact": 1.0, "faiss": 1.0}
"""Backends that are exact as they come; of any other, 95 hits of 100 are wanted."""


class TestInstalled(IndexConformance):
    @pytest.fixture(scope="class", params=registry.names("index"))
    @classmethod
    def case(cls, request: pytest.FixtureRequest) -> Case:
        return Case(backend_or_skip(request.param), recall=RECALL.get(request.param, 0.95))


class TestFaissIvf(IndexConformance):
    """All lists looked at: the hits of brute force."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        return Case(backend_or_skip("faiss"), IndexOptions("IVF1,Flat", {"nprobe": 1}))


class TestFaissHnsw(IndexConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        return Case(backend_or_skip("faiss"), IndexOptions("HNSW32"), recall=0.95)


@pytest.mark.parametrize("name", registry.names("index"))
def test_the_entry_point_has_the_name_of_its_class(name: str) -> None:
    assert backend_or_skip(name).name == name


@pytest.mark.parametrize("name", ["faiss", "hnsw"])
def test_a_changed_byte_is_damage(name: str, tmp_path: Path) -> None:
    """hnswlib would end the process, or find other vectors; FAISS would find other vectors."""
    backend = backend_or_skip(name)
    backend.build(Blocks(unit_vectors(200)), IndexOptions()).save(tmp_path)
    largest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(LlaraError, match="damaged"):
        backend.load(tmp_path, IndexOptions())
