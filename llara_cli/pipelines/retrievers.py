"""The retrievers that ``evaluate`` measures: a dense model, BM25, or a run of another system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from llara_cli.core import registry
from llara_cli.core.artifacts import sha256_file
from llara_cli.core.errors import UserError
from llara_cli.core.names import input_stem
from llara_cli.core.protocols import IndexBackend, IndexOptions, Role, Vectors
from llara_cli.core.reporter import Reporter
from llara_cli.core.workspace import CACHE, Workspace
from llara_cli.data.documents import read_documents
from llara_cli.data.eval_dataset import EvalDataset
from llara_cli.data.runs import RankedQueries, read_run
from llara_cli.evaluation.config import EvaluateConfig
from llara_cli.model.architecture import dtype_name
from llara_cli.model.backends import EncoderBackend
from llara_cli.model.decoder import choose_device, choose_dtype
from llara_cli.model.source import ModelSource
from llara_cli.pipelines.encode import Encoding, encoded
from llara_cli.retrieval import bm25
from llara_cli.retrieval.bm25 import Bm25
from llara_cli.retrieval.config import EncodeConfig
from llara_cli.retrieval.index_access import WithProgress
from llara_cli.retrieval.ranking import Shortfall, best_first, rank
from llara_cli.retrieval.vector_store import VectorStore

QUERIES = f"{CACHE}/queries"
"""Folder of the workspace for files of a data set's judged queries, from which they are encoded."""
QUERIES_SECONDS = 30
"""Seconds to wait for another process that writes queries there: far more than that takes."""


class Retriever(Protocol):
    """Finds documents for the judged queries of a data set."""

    @property
    def name(self) -> str:
        """Its name in tables and results."""

    def fingerprint(self, data: EvalDataset) -> str:
        """Identify the retriever and its version."""

    def settings(self) -> dict[str, Any]:
        """Settings that its rankings depend on."""

    def check(self) -> None:
        """Raise ``UserError`` for mistakes that can be found before any work."""

    def ranked_queries(self, data: EvalDataset, k: int, drop: bool) -> RankedQueries:
        """Every judged query with its k best documents; ``drop``: leave out the document with the query's id."""


@dataclass(frozen=True)
class Bm25Retriever:
    """BM25, indexed anew for each data set."""

    reporter: Reporter
    name: str = "bm25"

    def fingerprint(self, data: EvalDataset) -> str:
        """The library and its version."""
        return f"bm25s {version('bm25s')}"

    def settings(self) -> dict[str, Any]:
        """The formula, and how text is split into words."""
        return {"method": bm25.METHOD, "k1": bm25.K1, "b": bm25.B, "stemmer": bm25.STEMMER, "words": bm25.WORD}

    def check(self) -> None:
        """Raise ``UserError`` if the extra is not installed."""
        bm25.check_installed()

    def ranked_queries(self, data: EvalDataset, k: int, drop: bool) -> RankedQueries:
        """Search query by query."""
        with self.reporter.bar(f"indexing {data.name}", None, unit="texts") as bar:
            index = Bm25.over(bar.over(read_documents(data.folder.corpus)))
        data.warn_of_missing_documents(index.ids, self.reporter.warn)
        found = index.search(data.queries.values(), k + drop)
        with self.reporter.bar(f"searching {data.name}", len(data.queries), unit="queries") as bar:
            for query, hits in zip(data.queries, bar.over(found), strict=True):
                yield query, best_first(hits, k, query if drop else None)


@dataclass(frozen=True)
class DenseRetriever:
    """A dense model, through the vector store of the workspace."""

    workspace: Workspace
    source: ModelSource
    config: EvaluateConfig

    @property
    def name(self) -> str:
        """The model's name."""
        return self.source.name

    @property
    def encoder(self) -> str:
        """The encoder backend."""
        return self.config.encoder or self.source.usual_encoder

    def fingerprint(self, data: EvalDataset) -> str:
        """The fingerprint of the model's files."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self.source.fingerprint()

    def settings(self) -> dict[str, Any]:
        """Lengths and dtype as chosen for this model on this machine."""
        return self._settings

    @cached_property
    def _settings(self) -> dict[str, Any]:
        backend: type[EncoderBackend] = registry.load("encoder", self.encoder)
        return {
            "max_length": backend.choose_length(self.source, self.config.max_length),
            "query_length": backend.choose_length(self.source, self.config.query_length),
            "dtype": dtype_name(choose_dtype(self.config.dtype, choose_device())),
            "encoder": self.encoder,
            "index_backend": self.config.index_backend,
            "dim": self.config.dim,
        }

    def check(self) -> None:
        """Raise ``UserError`` for unknown backends, and for lengths and widths that the model does not have."""
        registry.load("index", self.config.index_backend)
        for role in ("passage", "query"):
            self._encode_settings(role)
        with self.workspace.reporter.status(f"reading the configuration of {self.source.name}"):
            self.settings()

    def ranked_queries(self, data: EvalDataset, k: int, drop: bool) -> RankedQueries:
        """Encode corpus and judged queries, unless they are encoded already; index; search block by block."""
        corpus = self._encoded(data.folder.path, "passage")
        data.warn_of_missing_documents(corpus.ids, self.workspace.reporter.warn)
        queries = self._encoded(self._judged_queries(data), "query")
        index = self._index(corpus, data.name)
        shortfall = Shortfall()
        with self.workspace.reporter.bar(f"searching {data.name}", queries.count, unit="queries") as bar:
            for names, vectors in _blocks(queries):
                ranked = rank(index, vectors, corpus.ids, k, drop=names if drop else None, shortfall=shortfall)
                yield from zip(names, bar.over(ranked), strict=True)
        if shortfall.queries:
            message = shortfall.message(queries.count)
            self.workspace.reporter.warn(f"{data.name}: {message}; `index_backend='exact'` searches all of them")

    def _judged_queries(self, data: EvalDataset) -> Path:
        """A file with only the judged queries."""
        with self.workspace.lock(QUERIES, wait=QUERIES_SECONDS):
            return data.write_queries(self.workspace.root / QUERIES)

    def _index(self, corpus: VectorStore, name: str) -> IndexBackend:
        """The index over the corpus, in memory."""
        backend: type[IndexBackend] = registry.load("index", self.config.index_backend)
        with self.workspace.reporter.bar(f"indexing {name}", corpus.count, unit="vectors") as bar:
            return backend.build(WithProgress(corpus, bar.advance), IndexOptions())

    def _encoded(self, collection: Path, role: Role) -> VectorStore:
        settings = self._encode_settings(role)
        return VectorStore(encoded(Encoding(self.workspace, self.source, collection, settings), "evaluate"))

    def _encode_settings(self, role: Role) -> EncodeConfig:
        config = self.config
        length = config.query_length if role == "query" else config.max_length
        return EncodeConfig(
            role=role, max_length=length, dtype=config.dtype, encoder=self.encoder, batch_tokens=config.batch_tokens,
            dim=config.dim, attention=config.attention,
        )  # fmt: skip


@dataclass(frozen=True)
class RunRetriever:
    """A run from anywhere: a file for one data set, or a folder with a file per data set, named like it."""

    path: Path
    given_name: str = ""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.given_name or input_stem(self.path)

    def fingerprint(self, data: EvalDataset) -> str:
        """Of the file."""
        return f"run {sha256_file(self._file(data))}"

    def settings(self) -> dict[str, Any]:
        """None: a run has no settings."""
        return {}

    def check(self) -> None:
        """Raise ``UserError`` if the path does not exist."""
        if not self.path.exists():
            raise UserError(f"no such file: {self.path}")

    def ranked_queries(self, data: EvalDataset, k: int, drop: bool) -> RankedQueries:
        """The run's hits of the judged queries, best first."""
        run = read_run(self._file(data))
        if not run.keys() & data.queries.keys():
            raise UserError(f"{self._file(data)}: none of its queries has judgments in {data.name}")
        for query in data.queries:
            yield query, best_first(run.get(query, {}).items(), k, query if drop else None)

    def _file(self, data: EvalDataset) -> Path:
        if not self.path.is_dir():
            return self.path
        stem = data.name.replace("/", "-")
        found = sorted(file for file in self.path.rglob(f"{data.name}.*") if file.is_file()) or sorted(
            file for file in self.path.glob(f"{stem}.*") if file.is_file()
        )
        runs = [file for file in found if file.suffix != ".json"]
        if not runs:
            raise UserError(f"{self.path}: no run of {data.name} in it (looked for {data.name}.* and {stem}.*)")
        return runs[0]


def check_is_one(retriever: Retriever, data_sets: Sequence[EvalDataset]) -> None:
    """Raise ``UserError`` for one run file for several data sets."""
    if isinstance(retriever, RunRetriever) and not retriever.path.is_dir() and len(data_sets) > 1:
        names = ", ".join(data.name for data in data_sets)
        raise UserError(
            f"`run={retriever.path}` is the run of one data set, not of {names}: give a folder with one run each"
        )


def _blocks(queries: VectorStore) -> Iterator[tuple[Sequence[str], Vectors]]:
    """Blocks of ids and vectors."""
    start = 0
    for vectors in queries:
        yield queries.ids[start : start + len(vectors)], vectors
        start += len(vectors)
