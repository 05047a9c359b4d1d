"""The stage ``evaluate``: a model (or BM25, or a run file) against judged queries, metrics by ir_measures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llara_cli import registry
from llara_cli.artifacts import dump, input_stem, slug, write_atomically
from llara_cli.console import Console, UserError
from llara_cli.data.collection import BeirFolder, is_beir_folder, read_documents
from llara_cli.model.source import ModelSource
from llara_cli.protocols import IndexBackend, IndexOptions, Vectors
from llara_cli.retrieval.bm25 import Bm25
from llara_cli.retrieval.encoding import EncodeSettings, Encoding, encoded
from llara_cli.retrieval.metrics import DEFAULT_METRICS, Evaluation, evaluate
from llara_cli.retrieval.ranking import rank
from llara_cli.retrieval.runs import Run, read_qrels, read_run, write_trec_run
from llara_cli.retrieval.store import VectorStore
from llara_cli.settings import refuse_nonpositive
from llara_cli.workspace import Workspace

BEIR = (
    "trec-covid", "nfcorpus", "bioasq", "nq", "hotpotqa", "fiqa", "signal1m", "trec-news", "robust04", "arguana",
    "webis-touche2020", "cqadupstack", "quora", "dbpedia-entity", "scidocs", "fever", "climate-fever", "scifact",
)  # fmt: skip
"""The 18 zero-shot sets of BEIR (Thakur et al. 2021)."""
IN_DOMAIN = "msmarco"
"""Shown on its dev split, never in BEIR's mean."""
HOLDS_ITS_QUERIES = {"arguana", "quora"}
"""Sets whose corpus holds the query itself: a hit with the query's own id is dropped there, and only there."""


@dataclass(frozen=True)
class EvaluateSettings:
    """``llara evaluate``; lengths None: 512, limited to the model's positions."""

    max_length: int | None = None
    query_length: int | None = None
    dtype: str = "auto"
    top_k: int = 1000
    metrics: Sequence[str] = DEFAULT_METRICS
    index_backend: str = "exact"
    encoder: str = "torch"
    batch_tokens: int | None = None
    drop_identical_ids: bool = False
    dim: int | None = None


@dataclass(frozen=True)
class DataSet:
    """One judged collection in BEIR layout."""

    folder: BeirFolder
    split: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @cached_property
    def qrels(self) -> dict[str, dict[str, int]]:
        """query id -> document id -> grade."""
        return read_qrels(self.folder.qrels(self.split))

    @cached_property
    def queries(self) -> dict[str, str]:
        """Queries that have judgements, in the file's order. Raises ``UserError`` where none has."""
        found = {
            document.id: document.passage
            for document in read_documents(self.folder.queries)
            if document.id in self.qrels
        }
        if not found:
            raise UserError(f"{self.folder.queries}: no query has judgements in {self.folder.qrels(self.split)}")
        return found


class Bm25Ranker:
    """BM25 over a data set."""

    name = "bm25"

    def run(self, data: DataSet, settings: EvaluateSettings, drop: bool) -> Run:
        """Score every judged query."""
        documents = list(read_documents(data.folder.corpus))
        ranker = Bm25([document.id for document in documents], [document.passage for document in documents])
        answers = ranker.search(list(data.queries.values()), settings.top_k + drop)
        return {
            query: dict([hit for hit in hits if not (drop and hit[0] == query)][: settings.top_k])
            for query, hits in zip(data.queries, answers, strict=True)
        }


@dataclass(frozen=True)
class ModelRanker:
    """A dense model over a data set, through the vector store of the workspace."""

    workspace: Workspace
    console: Console
    source: ModelSource

    @property
    def name(self) -> str:
        """The model's name."""
        return self.source.name

    def run(self, data: DataSet, settings: EvaluateSettings, drop: bool) -> Run:
        """Encode corpus and queries (or find them encoded), search, score every judged query."""
        corpus = self._store(data, settings, "passage")
        queries = self._store(data, settings, "query")
        backend: type[IndexBackend] = registry.load("index", settings.index_backend)
        index = backend.build(corpus, IndexOptions())
        judged = [row for row, query in enumerate(queries.ids) if query in data.qrels]
        names = [queries.ids[row] for row in judged]
        vectors: Vectors = np.ascontiguousarray(queries.matrix()[judged])
        ranked = rank(index, vectors, corpus.ids, settings.top_k, drop=names if drop else None)
        with self.console.bar(f"searching {data.name}", len(names), unit="queries") as bar:
            return {query: dict(hits) for query, hits in zip(names, _counted(ranked, bar.advance), strict=True)}

    def _store(self, data: DataSet, settings: EvaluateSettings, role: Any) -> VectorStore:
        length = settings.query_length if role == "query" else settings.max_length
        encode = EncodeSettings(
            role, length, settings.dtype, encoder=settings.encoder, batch_tokens=settings.batch_tokens, dim=settings.dim
        )
        encoding = Encoding(self.workspace, self.console, self.source, data.folder.path, encode)
        return VectorStore(encoded(encoding, "evaluate"))


def _counted(items: Iterator[Any], progress: Any) -> Iterator[Any]:
    for item in items:
        progress()
        yield item


@dataclass(frozen=True)
class Benchmark:
    """Data sets evaluated together with one ranker."""

    workspace: Workspace
    console: Console
    name: str
    ranker: Bm25Ranker | ModelRanker
    settings: EvaluateSettings

    def run(self, data_sets: Sequence[DataSet]) -> dict[str, Any]:
        """Evaluate each; the command's result. The mean leaves MS MARCO out where zero-shot sets are beside it."""
        refuse_nonpositive("--top-k", self.settings.top_k)
        registry.load("index", self.settings.index_backend)
        self.workspace.create()
        for data in data_sets:
            _ = data.queries
        found = {data.name: self._evaluate(data) for data in data_sets}
        averaged = [name for name in found if name != IN_DOMAIN or len(found) == 1]
        first = self.settings.metrics[0]
        mean = sum(found[name][first] for name in averaged) / len(averaged)
        return {
            "benchmark": self.name,
            "model": self.ranker.name,
            "datasets": found,
            "mean": {first: mean, "datasets": len(averaged)},
        }

    def _drops(self, data: DataSet) -> bool:
        return self.settings.drop_identical_ids or data.name in HOLDS_ITS_QUERIES

    def _evaluate(self, data: DataSet) -> dict[str, Any]:
        run = self.ranker.run(data, self.settings, self._drops(data))
        evaluation = evaluate(data.qrels, run, self.settings.metrics)
        self._save(data, run, evaluation)
        return {**evaluation.means, "queries": evaluation.queries}

    def _save(self, data: DataSet, run: Run, evaluation: Evaluation) -> None:
        folder = self.workspace.root / "results" / slug(self.name) / slug(self.ranker.name)
        folder.mkdir(parents=True, exist_ok=True)
        hits = ((query, sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))) for query, scores in run.items())
        write_trec_run(folder / f"{data.name}.trec", hits, self.ranker.name)
        write_atomically(folder / f"{data.name}.per-query.json", json.dumps(evaluation.per_query, indent=1) + "\n")
        result = {
            "metrics": evaluation.means,
            "queries": evaluation.queries,
            "split": data.split,
            "model": self.ranker.name,
        }
        settings = asdict(self.settings) | {"drop_identical_ids": self._drops(data)}
        write_atomically(
            folder / f"{data.name}.json", dump(result | {"settings": settings, "top_k": self.settings.top_k})
        )


def evaluate_run(run: Path, qrels: Path, metrics: Sequence[str]) -> dict[str, Any]:
    """``evaluate --run RUN --qrels QRELS``; benchmark and data set are the run file's stem."""
    evaluation = evaluate(read_qrels(qrels), read_run(run), metrics)
    name = input_stem(run)
    found = {**evaluation.means, "queries": evaluation.queries}
    mean = {metrics[0]: evaluation.means[metrics[0]], "datasets": 1}
    return {"benchmark": name, "model": name, "datasets": {name: found}, "mean": mean}


def beir_data_sets(wanted: str, root: Path | None, split: str | None, console: Console) -> list[DataSet]:
    """The BEIR sets named (``all``, or comma-separated) under ``root``; of ``all``, missing ones are named and skipped.

    Raises ``UserError`` for an unknown name, and for a named set that is not there.
    """
    everything = wanted == "all"
    names = (
        [*BEIR, IN_DOMAIN]
        if everything
        else list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    )
    if root is None:
        raise UserError("--data-root is needed: a folder that holds the data sets in BEIR layout, one folder each")
    if not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    missing = [name for name in names if not (root / name).is_dir()]
    if missing and not everything:
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir()))
        raise UserError(f"--datasets {', '.join(missing)}: not under {root}; there are: {there or 'none'}")
    if missing:
        console.note(f"not under {root}, skipped: {', '.join(missing)}")
    found = [name for name in names if name not in missing]
    if everything:
        unreadable = [name for name in found if not is_beir_folder(root / name)]
        if unreadable:
            console.warn(f"not one folder in BEIR layout, skipped: {', '.join(unreadable)}")
        found = [name for name in found if name not in unreadable]
    if not found:
        raise UserError(f"none of BEIR's data sets lies under {root}")
    return [DataSet(BeirFolder(root / name), split or ("dev" if name == IN_DOMAIN else "test")) for name in found]
