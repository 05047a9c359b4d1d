"""The benchmark of exact search runs at a small size, and finds that the index is exact."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu_exact.py"


@pytest.mark.skipif(not BENCHMARK.is_file(), reason="benchmarks are not part of a source distribution")
def test_every_number_of_queries_is_measured() -> None:
    told: dict[str, dict[str, Any]] = {}
    runpy.run_path(str(BENCHMARK))["measure"](
        "cpu", 3000, 16, lambda setting, **figures: told.update({setting: figures})
    )
    for count in (1, 10, 100, 1000):
        figures = told[f"fp32, {count} queries"]
        assert figures["overlap"] == 1
        assert figures["score_difference"] < 1e-6
        assert figures["ms"] > 0
        assert figures["times_floor"] == pytest.approx(figures["ms"] / figures["floor_ms"])
    assert any(setting.startswith("faiss") for setting in told)
    assert ("skipped" in told.get("faiss Flat", {})) == (find_spec("faiss") is None)
