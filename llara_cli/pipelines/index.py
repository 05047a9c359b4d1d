"""``index``: a vector store in, an index of any backend out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llara_cli.core import registry
from llara_cli.core.artifacts import Artifact, Build, RunSpec, size_on_disk
from llara_cli.core.names import NAME_BYTES, slug
from llara_cli.core.protocols import IndexBackend, IndexOptions
from llara_cli.core.workspace import Workspace
from llara_cli.model.source import ModelSource
from llara_cli.pipelines.encode import Encoding, encoded
from llara_cli.retrieval.config import EncodeConfig, IndexConfig
from llara_cli.retrieval.index_access import FILES, WithProgress, typed_parameters
from llara_cli.retrieval.vector_store import VectorStore


@dataclass(frozen=True)
class Indexing:
    """One run of ``index``."""

    workspace: Workspace
    embeddings: Artifact
    backend: str = "exact"
    options: IndexOptions = field(default_factory=IndexOptions)
    name: str = ""
    made_for: str = "user"

    def run(self, *, restart: bool = False) -> dict[str, Any]:
        """Build the index, or return the result of a finished one."""
        backend: type[IndexBackend] = registry.load("index", self.backend)
        with self.workspace.build("indexes", self.artifact_name, self.run_spec(), restart=restart) as build:
            if isinstance(build, Artifact):
                return self.workspace.result_again(build)
            return self._build(backend, build)

    def plan(self) -> dict[str, Any]:
        """Plan of ``run``."""
        store = VectorStore(self.embeddings)
        plain = store.count * store.dim * 4
        return {
            "name": self.artifact_name,
            "backend": self.backend,
            "count": store.count,
            "dim": store.dim,
            "bytes_of_plain_vectors": plain,
        }

    @property
    def artifact_name(self) -> str:
        """The given name, else ``EMBEDDINGS-BACKEND[-SPEC]``."""
        spec = f"-{slug(self.options.spec)}" if self.options.spec else ""
        return self.name or slug(f"{self.embeddings.name}-{self.backend}{spec}", NAME_BYTES)

    def run_spec(self) -> RunSpec:
        """Settings and parents that identify the run, including the model that queries must be encoded with."""
        made = self.embeddings.manifest
        settings = {
            "backend": self.backend,
            "spec": self.options.spec,
            "parameters": dict(self.options.parameters),
            "embeddings": self.embeddings.name,
            "model": made["settings"]["model"],
            "source": made["settings"]["source"],
            "dtype": made["settings"]["dtype"],
            "encoder": made["settings"]["encoder"],
        }
        settings |= {"dim": made["settings"]["dim"]} if "dim" in made["settings"] else {}
        parents = {"embeddings": self.embeddings.fingerprint, "model": made["parents"]["model"]}
        return RunSpec(settings, (), parents)

    def _build(self, backend: type[IndexBackend], build: Build) -> dict[str, Any]:
        store = VectorStore(self.embeddings)
        started = time.monotonic()
        with self.workspace.reporter.bar(f"indexing ({self.backend})", store.count, unit="vectors") as bar:
            index = backend.build(WithProgress(store, bar.advance), self.options)
            with build.staging() as aside:
                index.save(aside)
                folder = build.open_folder() / FILES
                shutil.rmtree(folder, ignore_errors=True)
                aside.replace(folder)
        return finish(build, {"count": index.count, "dim": index.dim}, started, self.made_for)


def indexing(workspace: Workspace, embeddings: Artifact, config: IndexConfig, name: str | None = None) -> Indexing:
    """The indexing run of the settings. Raises ``UserError`` for an unknown backend or parameter."""
    backend: type[IndexBackend] = registry.load("index", config.backend)
    accepted = {**backend.build_parameters, **backend.search_parameters}
    parameters = typed_parameters(config.parameters, accepted, config.backend)
    options = IndexOptions(config.spec, parameters, config.device)
    return Indexing(workspace, embeddings, config.backend, options, name or "")


def index_corpus(
    workspace: Workspace, source: ModelSource, corpus: Path, settings: EncodeConfig, made_for: str
) -> Artifact:
    """An exact index over a corpus encoded with the model; both are artifacts, and reused if they exist."""
    made = encoded(Encoding(workspace, source, corpus, settings), made_for)
    indexing = Indexing(workspace, made, made_for=made_for)
    run_spec = indexing.run_spec()
    if found := workspace.find_equal("indexes", run_spec):
        return found
    name = f"{slug(made.name, NAME_BYTES - 9)}-{run_spec.fingerprint[:8]}"  # not one that `llara index` gives
    replace(indexing, name=name).run(restart=workspace.is_damaged("indexes", name))
    return workspace.get("indexes", name)


def finish(build: Build, counts: Mapping[str, int], started: float, made_for: str = "user") -> dict[str, Any]:
    """Finish an index whose files are written; return the command's result. ``started``: ``time.monotonic()``."""
    result = {
        "name": build.name,
        "path": str(build.target),
        "backend": build.run_spec.settings["backend"],
        "count": counts["count"],
        "dim": counts["dim"],
        "bytes": size_on_disk(build.folder / FILES),
        "seconds": round(time.monotonic() - started, 3),
    }
    build.finish(counts, result, made_for)
    return result
