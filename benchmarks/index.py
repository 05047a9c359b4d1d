"""What the index backends cost over the bare libraries at the same settings: building, searching, recall.

    python benchmarks/index.py [--rows 200000] [--dim 384] [--rounds 3] [--threads 2] [--only NAME] [--json FILE]

Vectors, of length 1: 2,000 clusters of different width in a space whose variance falls along its axes, each much wider
than its centres are apart, so that clusters overlap; queries: others from the same clusters, none of the corpus. Builds
(three at least) and searches are timed in turns with the bare library's; a ratio is the median of the pairs'. Recall is
against brute force.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import faiss
import hnswlib
import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from llara_backends.index_exact import MappedVectors
from llara_cli.core import registry
from llara_cli.core.protocols import IndexBackend, IndexOptions, Vectors

CENTRES, NOISE, DECAY, QUERIES, K = 2000, 1.5, 0.5, 1000, 10
EF, EF_CONSTRUCTION, M = 128, 200, 32
LEAST_BUILDS = 3
Build = Callable[[Vectors], Any]
Search = Callable[[Any, Vectors], Any]


@dataclass(frozen=True)
class Rivals:
    """One kind of index, through our backend and bare."""

    backend: type[IndexBackend]
    options: IndexOptions
    build: Build
    search: Search

    def ours(self, vectors: Vectors) -> IndexBackend:
        """Our backend's index."""
        made: IndexBackend = self.backend.build(MappedVectors(vectors), self.options)
        return made


class Clusters:
    """Overlapping clusters of different width; the axes' standard deviations fall as 1 / axis ** ``DECAY``."""

    def __init__(self, dim: int) -> None:
        random = np.random.default_rng(0)
        axes = np.arange(1, dim + 1, dtype=np.float32) ** -DECAY
        self.axes = (axes / np.linalg.norm(axes)).astype(np.float32)
        self.centres = self.axes * random.standard_normal((CENTRES, dim), dtype=np.float32)
        self.widths = (NOISE * random.gamma(2.0, 0.5, (CENTRES, 1))).astype(np.float32)

    def draw(self, rows: int, seed: int) -> Vectors:
        """(rows, dim) vectors of length 1, the same for equal seeds."""
        random = np.random.default_rng(seed)
        chosen = random.integers(0, CENTRES, rows)
        vectors = random.standard_normal((rows, len(self.axes)), dtype=np.float32)
        vectors *= self.axes
        vectors *= self.widths[chosen]
        vectors += self.centres[chosen]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bare_faiss(spec: str, **settings: int) -> tuple[Build, Search]:
    """FAISS by itself, trained on as many vectors as our backend takes, with these search settings."""

    def build(vectors: Vectors) -> Any:
        index = faiss.index_factory(vectors.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
        if hasattr(index, "hnsw"):
            index.hnsw.efConstruction = EF_CONSTRUCTION
        if not index.is_trained:
            size = min(len(vectors), 65_536)
            index.train(vectors[np.sort(np.random.default_rng(0).choice(len(vectors), size, replace=False))])
        index.add(vectors)
        for name, value in settings.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        return index

    return build, lambda index, queries: index.search(queries, K)[1]


def bare_hnswlib(vectors: Vectors, threads: int) -> Any:
    """hnswlib by itself."""
    graph = hnswlib.Index("ip", vectors.shape[1])
    graph.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=100)
    graph.add_items(vectors, num_threads=threads)
    graph.set_ef(EF)
    return graph


def rivals(rows: int, threads: int) -> dict[str, Rivals]:
    """Every kind that is compared."""
    lists = 1024 if rows >= 100_000 else 128
    ours = registry.load("index", "faiss")
    ivf = f"IVF{lists},Flat"
    graph = {"ef_construction": EF_CONSTRUCTION, "ef": EF}
    return {
        "faiss Flat": Rivals(ours, IndexOptions("Flat"), *bare_faiss("Flat")),
        f"faiss {ivf}": Rivals(ours, IndexOptions(ivf), *bare_faiss(ivf, nprobe=math.isqrt(lists))),
        "faiss HNSW32": Rivals(ours, IndexOptions("HNSW32", graph), *bare_faiss("HNSW32", efSearch=EF)),
        "hnswlib": Rivals(
            registry.load("index", "hnsw"), IndexOptions(parameters={**graph, "M": M, "threads": threads}),
            partial(bare_hnswlib, threads=threads), lambda index, queries: index.knn_query(queries, K)[0],
        ),
    }  # fmt: skip


def recorded(seconds: list[float], function: Callable[[], Any]) -> Any:
    """The result; how long it took is noted."""
    started = time.perf_counter()
    result = function()
    seconds.append(time.perf_counter() - started)
    return result


def in_turns(turn: int, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """The results of both; every other turn the second runs first."""
    if turn % 2:
        result = second()
        return first(), result
    return first(), second()


def compare(pair: Rivals, vectors: Vectors, queries: Vectors, truth: Any, rounds: int) -> dict[str, Any]:
    """Build and search ratios (ours over theirs), recall and rate of both."""
    seconds: dict[str, list[float]] = {name: [] for name in ("build", "bare build", "search", "bare search")}
    for turn in range(max(LEAST_BUILDS, rounds)):
        bare, mine = in_turns(
            turn,
            lambda: recorded(seconds["bare build"], lambda: pair.build(vectors)),
            lambda: recorded(seconds["build"], lambda: pair.ours(vectors)),
        )
    found = {"llara": mine.search(queries, K).rows, "bare": pair.search(bare, queries)}  # the first is not timed
    for turn in range(3 * rounds):
        in_turns(
            turn,
            lambda: recorded(seconds["bare search"], lambda: pair.search(bare, queries)),
            lambda: recorded(seconds["search"], lambda: mine.search(queries, K)),
        )
    ratios = {
        what: statistics.median(a / b for a, b in zip(seconds[what], seconds[f"bare {what}"], strict=True))
        for what in ("build", "search")
    }
    recall = {
        who: float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), truth.tolist(), strict=True)]))
        for who, rows in found.items()
    }
    rates = {who: len(queries) / statistics.median(seconds[what])
             for who, what in (("llara", "search"), ("bare", "bare search"))}  # fmt: skip
    return {"ratio": ratios, "recall@10": recall, "queries_per_second": rates, "seconds": seconds}


def draw(found: dict[str, Any], path: Path) -> None:
    """Recall over queries a second, ours and bare."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, row in found.items():
        for who, marker in (("llara", "o"), ("bare", "x")):
            axes.scatter(row["queries_per_second"][who], row["recall@10"][who], marker=marker, label=f"{name}, {who}")
    axes.set(xlabel="queries a second", ylabel="recall@10", xscale="log")
    axes.legend(fontsize="small")
    figure.savefig(path)


def main(
    rows: int = 200_000,
    dim: int = 384,
    rounds: int = 3,
    threads: int = 2,
    only: Annotated[str, typer.Option(help="Kinds whose name has this; the JSON file keeps the others.")] = "",
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Compare every kind of index."""
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    clusters = Clusters(dim)
    vectors, queries = clusters.draw(rows, 1), clusters.draw(QUERIES, 2)
    truth = registry.load("index", "exact").build(MappedVectors(vectors), IndexOptions()).search(queries, K).rows
    found = {}
    for name, pair in ((name, pair) for name, pair in rivals(rows, threads).items() if only in name):
        found[name] = compare(pair, vectors, queries, truth, rounds)
        print(name, json.dumps({key: found[name][key] for key in ("ratio", "recall@10")}), flush=True)
    if as_json is not None:
        versions = {package: version(package) for package in ("faiss-cpu", "hnswlib", "numpy")}
        settings = {"rows": rows, "dim": dim, "queries": QUERIES, "k": K, "threads": threads, "rounds": rounds}
        settings |= {"centres": CENTRES, "noise": NOISE, "decay": DECAY}
        before = json.loads(as_json.read_text()) if only and as_json.exists() else {"found": {}}
        found = before["found"] | found
        as_json.write_text(json.dumps({"settings": settings, "versions": versions, "found": found}, indent=1) + "\n")
        draw(found, as_json.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
