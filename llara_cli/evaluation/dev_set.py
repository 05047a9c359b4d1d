"""The dev set of a training run: a small test collection, searched in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llara_cli.core import registry
from llara_cli.core.input_digests import input_record
from llara_cli.core.protocols import IndexOptions, Role, Vectors
from llara_cli.data.beir import BeirFolder
from llara_cli.data.documents import Document, read_documents
from llara_cli.data.eval_dataset import EvalDataset
from llara_cli.evaluation.metrics import evaluate
from llara_cli.retrieval.ranking import rank

METRIC = "nDCG@10"
_DEPTH = 10


@dataclass(frozen=True)
class Matrix:
    """Vectors in memory, as a stream of one block."""

    vectors: Vectors

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Columns."""
        return int(self.vectors.shape[1])

    def __iter__(self) -> Iterator[Vectors]:
        yield self.vectors


@dataclass(frozen=True)
class DevSet:
    """The split ``dev``, else ``test``, of a folder in BEIR layout."""

    data: EvalDataset
    metric: str = METRIC

    @classmethod
    def of(cls, path: Path) -> DevSet:
        """Open a folder. Raises ``UserError`` if it has neither split, or no judged query, and for a damaged file."""
        folder = BeirFolder(path)
        made = cls(EvalDataset(folder, "dev" if "dev" in folder.splits() else "test"))
        _ = made.data.queries, made._documents
        return made

    def warn_of_gaps(self, warn: Callable[[str], None]) -> None:
        """Warn of judged queries and documents that are missing."""
        self.data.warn_of_missing_queries(warn)
        self.data.warn_of_missing_documents((document.id for document in self._documents), warn)

    @property
    def is_test(self) -> bool:
        """Whether it is the split ``test``, as the folder has no ``dev``."""
        return self.data.split == "test"

    def inputs(self) -> list[dict[str, Any]]:
        """Names and digests of corpus, queries and judgments."""
        folder = self.data.folder
        return [input_record(path) for path in (folder.corpus, folder.queries, folder.qrels(self.data.split))]

    @cached_property
    def _documents(self) -> list[Document]:
        return list(read_documents(self.data.folder.corpus))

    def score(self, encode: Callable[[Sequence[str], Role], Vectors]) -> float:
        """nDCG@10 of an exact search."""
        corpus = encode([document.passage for document in self._documents], "passage")
        queries = encode(list(self.data.queries.values()), "query")
        index = registry.load("index", "exact").build(Matrix(corpus), IndexOptions())
        ranked = rank(index, queries, [document.id for document in self._documents], _DEPTH)
        run = {name: dict(hits) for name, hits in zip(self.data.queries, ranked, strict=True)}
        return evaluate(self.data.qrels, run, (METRIC,)).means[METRIC]
