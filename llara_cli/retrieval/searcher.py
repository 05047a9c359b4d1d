"""Searches an index of the workspace with the model that its vectors came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llara_cli.core import registry
from llara_cli.core.artifacts import Artifact
from llara_cli.core.config import checked_count
from llara_cli.core.errors import UserError
from llara_cli.core.names import expand_home
from llara_cli.core.protocols import IndexBackend, Parameters, Role, Vectors
from llara_cli.core.workspace import Workspace
from llara_cli.model.backends import EncoderBackend, EncoderOptions
from llara_cli.model.decoder import choose_device
from llara_cli.model.source import ModelSource, resolve, resolve_recorded
from llara_cli.retrieval.config import SearchConfig
from llara_cli.retrieval.index_access import open_index, typed_parameters
from llara_cli.retrieval.index_rows import IndexRows
from llara_cli.retrieval.ranking import RowRanking, Shortfall, rank_rows
from llara_cli.retrieval.vector_store import cut


@dataclass(frozen=True)
class Searcher:
    """An index for search, with the model that its vectors came from; both are loaded when first needed."""

    workspace: Workspace
    index: Artifact
    config: SearchConfig = field(default_factory=SearchConfig)

    @cached_property
    def source(self) -> ModelSource:
        """The model recorded in the index.

        Raises ``UserError`` if another is asked for, or if it is gone or has changed since.
        """
        settings, parents = self.index.manifest["settings"], self.index.manifest["parents"]
        if self.config.model:
            self._refuse_missing(self.config.model, settings, parents)
            source = resolve(self.config.model, self.workspace, remote_code=self.config.trust_remote_code)
        else:
            source = self._recorded_model(settings, parents)
        if source.fingerprint() != parents["model"]:
            other = f"not with {source.name!r}" if self.config.model else "which has changed since"
            raise UserError(
                f"index {self.index.name!r} was made with model {settings['model']!r}, {other}; encode and index again"
            )
        return source

    def _refuse_missing(self, model: str, settings: Mapping[str, Any], parents: Mapping[str, str]) -> None:
        """Raise ``UserError`` for a missing model: it cannot be a hub id if the index's model is a local one."""
        is_there = Path(expand_home(model)).exists() or (self.workspace.root / "models" / model).exists()
        if not is_there and not parents["model"].startswith("hub:"):
            raise UserError(
                f"`model={model}` does not exist; index {self.index.name!r} was made with model {settings['model']!r}"
                " of this machine: bring it back, or encode and index again"
            )

    def _recorded_model(self, settings: Mapping[str, Any], parents: Mapping[str, str]) -> ModelSource:
        try:
            return resolve_recorded(
                settings["source"], parents["model"], self.workspace, remote_code=self.config.trust_remote_code
            )
        except UserError as error:
            raise UserError(
                f"index {self.index.name!r} was made with model {settings['model']!r}, which was not found: {error};"
                " bring it back, or encode and index again"
            ) from error

    @cached_property
    def index_rows(self) -> IndexRows:
        """The embeddings behind the index. Raises ``UserError`` if some are gone or were made again since."""
        return IndexRows(self.workspace, self.index)

    @cached_property
    def backend(self) -> IndexBackend:
        """The opened index."""
        with self.workspace.reporter.status(f"opening index {self.index.name}"):
            return open_index(self.index, self.config.device, self.workspace.reporter.warn_once)

    @cached_property
    def encoder(self) -> EncoderBackend:
        """The loaded model."""
        settings = self.index.manifest["settings"]
        # on a GPU the dtype of the vectors; a CPU uses its fastest
        dtype = settings["dtype"] if choose_device().type == "cuda" else "auto"
        cut_at = self.index_rows.stores[0].artifact.manifest["settings"].get("max_length")
        options = EncoderOptions(
            dtype=dtype,
            query_length=self.config.query_length,
            passage_length=cut_at,
            note=self.workspace.reporter.warn_once,
        )
        with self.workspace.reporter.status(f"loading {self.source.name}"):
            encoder: EncoderBackend = registry.load("encoder", settings["encoder"]).load(self.source, options)
        return encoder

    def check(self, k: int, parameters: Parameters | None = None) -> None:
        """Raise ``UserError`` or ``LlaraError`` for mistakes that can be found before the model is loaded."""
        checked_count("top_k", k)
        _ = self.source, self.index_rows.removed, self._typed(parameters)

    def _typed(self, parameters: Parameters | None) -> dict[str, int | float | str]:
        """Search parameters (None: those of the config), converted to the types that the backend declares."""
        given = self.config.parameters if parameters is None else parameters
        return typed_parameters(given, self._backend_class.search_parameters, self._backend_class.name)

    @cached_property
    def _backend_class(self) -> type[IndexBackend]:
        found: type[IndexBackend] = registry.load("index", self.index.manifest["settings"]["backend"])
        return found

    def embed(self, texts: Sequence[str], role: Role) -> Vectors:
        """Vectors (texts, dim) of the index's width."""
        dim = self.index.manifest["settings"].get("dim")
        return np.ascontiguousarray(cut(self.encoder.encode(texts, role).vectors, dim))

    def rank(
        self, texts: Sequence[str], k: int, parameters: Parameters | None = None, shortfall: Shortfall | None = None
    ) -> Iterator[RowRanking]:
        """The k best rows of each query.

        Args:
            parameters: of this search. Default: those of the config.
            shortfall: counts the queries with too few hits. Default: a count that ``warn_of_shortfall`` reports.
        """
        typed, index_rows = self._typed(parameters), self.index_rows
        queries, ids = self.embed(texts, "query"), index_rows.ids
        counted = self._shortfall if shortfall is None else shortfall
        return rank_rows(self.backend, queries, ids, k, typed, removed=index_rows.removed, shortfall=counted)

    @cached_property
    def _shortfall(self) -> Shortfall:
        return Shortfall()

    @cached_property
    def _warned(self) -> set[tuple[Any, ...]]:
        """The numbers of hits and the parameters of which the user was warned."""
        return set()

    def warn_of_shortfall(self, queries: int) -> None:
        """Warn if some of the ``queries`` queries ranked so far got too few hits."""
        self._warn(self._shortfall, queries)

    def _warn(self, shortfall: Shortfall, queries: int) -> None:
        if shortfall.queries:
            raised = " or ".join(f"`parameters[{name!r}]`" for name in shortfall.settings)
            advice = f"; raise {raised}" if raised else ""
            self.workspace.reporter.warn(f"{shortfall.message(queries)}{advice}")

    def hits(self, queries: Sequence[str], k: int, parameters: Parameters | None = None) -> list[list[dict[str, Any]]]:
        """The hits of each query: rank, id, score, title and text; ``parameters`` as of ``rank``.

        Warns of too few hits once for each ``k`` and ``parameters``.
        """
        typed, shortfall = self._typed(parameters), Shortfall()
        found = [list(self._described(hits)) for hits in self.rank(queries, k, typed, shortfall)]
        asked = (k, *sorted(typed.items()))
        if shortfall.queries and asked not in self._warned:
            self._warned.add(asked)
            self._warn(shortfall, len(queries))
        return found

    def _described(self, hits: RowRanking) -> Iterator[dict[str, Any]]:
        for position, (document, score, row) in enumerate(hits, 1):
            text = self.index_rows.text(row)
            yield {
                "rank": position,
                "id": document,
                "score": round(score, 6),
                "title": text["title"],
                "text": text["text"],
            }
