"""Results of jobs: trained models, embeddings, indexes and their hits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from llara.arguments import texts_of
from llara.model import Model
from llara_cli.core.artifacts import Artifact
from llara_cli.core.protocols import Parameters, Vectors
from llara_cli.core.workspace import Workspace as Store
from llara_cli.retrieval.config import SearchConfig

if TYPE_CHECKING:
    from llara_cli.retrieval.searcher import Searcher


@dataclass(frozen=True)
class TrainedModel:
    """A model of the workspace.

    >>> import llara
    >>> workspace = llara.Workspace("workspace")
    >>> trained = workspace.pretrain("wiki.jsonl", model="tiny-model", max_steps=2, batch_size=2, max_length=48)
    >>> [row["step"] for row in trained.history]
    [1, 2]
    >>> trained.load().dim
    32

    Attributes:
        name: its name in the workspace.
        path: its folder, a Hugging Face checkpoint.
        result: losses, counts and time, as printed by ``llara pretrain --json``.
    """

    name: str
    path: Path
    result: Mapping[str, Any]

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per optimizer step: losses, learning rate, norm of the gradient, texts, tokens."""
        return list(self.result["history"])

    def load(self, **options: Any) -> Model:
        """Load the model into memory; ``options``: those of ``Model.load``."""
        return Model.load(self.path, **options)


class Embeddings:
    """Vectors of a collection, with its ids and texts, on disk.

    >>> import llara
    >>> embeddings = llara.Workspace("workspace").encode("corpus.jsonl", model="tiny-model")
    >>> embeddings.vectors().shape == (embeddings.count, embeddings.dim)
    True
    >>> embeddings.ids[0]
    'd0'
    """

    def __init__(self, artifact: Artifact) -> None:
        from llara_cli.retrieval.vector_store import VectorStore

        self.artifact = artifact
        self._store = VectorStore(artifact)
        self.name, self.path = artifact.name, artifact.path
        self.count, self.dim = self._store.count, self._store.dim

    @property
    def ids(self) -> Sequence[str]:
        """The documents' ids, in the order of the vectors."""
        return self._store.ids

    def vectors(self) -> Vectors:
        """All vectors, in memory: float32 (count, dim), L2-normalized."""
        return self._store.matrix()

    def blocks(self) -> Iterator[Vectors]:
        """The vectors one block after the other, float32 (rows, dim), for collections larger than memory."""
        return iter(self._store)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Embeddings({self.name!r}, count={self.count}, dim={self.dim})"


@dataclass(frozen=True)
class Hit:
    """A document found by a search.

    >>> import llara
    >>> llara.Hit(rank=1, id="d1", score=0.75, title="", text="Bees dance.").score
    0.75

    Attributes:
        rank: from 1.
        score: inner product of the normalized vectors; higher is better.
    """

    rank: int
    id: str
    score: float
    title: str
    text: str


class Index:
    """An index of the workspace, which loads its model when it is first searched.

    >>> import llara
    >>> workspace = llara.Workspace("workspace")
    >>> index = workspace.index(workspace.encode("corpus.jsonl", model="tiny-model"), backend="exact")
    >>> hits = index.search("why do bees dance", top_k=2)
    >>> [hit.rank for hit in hits]
    [1, 2]
    >>> several = index.search(["why do bees dance", "do cats sleep"], top_k=2)
    >>> [len(hits) for hits in several]
    [2, 2]
    """

    def __init__(self, workspace: Store, artifact: Artifact, config: SearchConfig | None = None) -> None:
        self._workspace = workspace
        self._config = config or SearchConfig()
        self.artifact = artifact
        self.name, self.path = artifact.name, artifact.path
        self.count: int = artifact.manifest["counts"]["count"]
        self.dim: int = artifact.manifest["counts"]["dim"]

    @cached_property
    def _searcher(self) -> Searcher:
        from llara_cli.retrieval.searcher import Searcher

        return Searcher(self._workspace, self.artifact, self._config)

    @overload
    def search(self, query: str, top_k: int | None = None, *, parameters: Parameters | None = None) -> list[Hit]: ...
    @overload
    def search(
        self, query: list[str] | tuple[str, ...], top_k: int | None = None, *, parameters: Parameters | None = None
    ) -> list[list[Hit]]: ...
    def search(
        self,
        query: str | list[str] | tuple[str, ...],
        top_k: int | None = None,
        *,
        parameters: Parameters | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """The best documents for a query.

        Args:
            query: one query or several.
            top_k: hits per query. Default: 10, or what ``load_index`` was given.
            parameters: search parameters of the index's backend, as ``{"ef": 128}``. Default: those of the index, or
                what ``load_index`` was given.

        Returns:
            The hits, best first; a list of them for each of several queries.

        Raises:
            UserError: if the index's model is gone or has changed, for unknown parameters, and for a query that is not
                a string.
        """
        queries = texts_of(query, "query")
        k = self._config.top_k if top_k is None else top_k
        self._searcher.check(k, parameters)
        found = [[Hit(**hit) for hit in hits] for hits in self._searcher.hits(queries, k, parameters)]
        return found[0] if isinstance(query, str) else found

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Index({self.name!r}, count={self.count}, dim={self.dim})"
