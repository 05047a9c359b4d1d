"""``index --append`` and ``--remove``: a new index is built beside the old one and replaces it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.artifacts import Artifact, Build, RunSpec, emptied
from llara_cli.core.errors import UserError
from llara_cli.core.workspace import Workspace
from llara_cli.pipelines.index import finish
from llara_cli.retrieval.index_access import FILES, WithProgress, open_index
from llara_cli.retrieval.index_rows import REMOVED, IndexRows, indexed_embeddings, read_id_file
from llara_cli.retrieval.vector_store import VectorStore


@dataclass
class Changing:
    """A change of a finished index. ``before``: its fingerprint when the change began."""

    workspace: Workspace
    index: Artifact
    before: str = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.index.fingerprint
        self.index = replace(self.index)  # reads its manifest again: one read before may be of an older index

    def append(self, embeddings: Artifact) -> dict[str, Any]:
        """Add the vectors of ``embeddings``, unless the index has them already.

        Raises ``UserError`` if they are of another model or width, if an id exists already, or if the backend cannot
        add vectors.
        """
        mark = (embeddings.name, embeddings.fingerprint)
        if mark in indexed_embeddings(self.index):
            return self.workspace.result_again(self.index, f"has embeddings {embeddings.name!r} already")
        index_rows = self._fitting(embeddings)
        with self._building([*index_rows.embeddings, mark], index_rows.removed) as build:
            started, store = time.monotonic(), VectorStore(embeddings)
            index = open_index(self.index)
            with self.workspace.reporter.bar("adding", store.count, unit="vectors") as bar:
                index.append(WithProgress(store, bar.advance))
                index.save(emptied(build.folder / FILES))
            return self._finish(build, index.count, started)

    def remove(self, file: Path) -> dict[str, Any]:
        """Remove the ids in ``file`` from search results; their vectors stay in the index until the next build.

        Raises ``UserError`` for an id that the index does not have.
        """
        wanted = read_id_file(file)
        index_rows = IndexRows(self.workspace, self.index)
        rows = {name: row for row, name in index_rows.living() if name in wanted}
        before = {index_rows.ids[row] for row in index_rows.removed.tolist()}
        if unknown := next((name for name in wanted if name not in rows and name not in before), None):
            raise UserError(f"{file}:{wanted[unknown]}: index {self.index.name!r} has no id {unknown!r}")
        if not rows:
            return self.workspace.result_again(self.index, "has none of these ids any more")
        removed = np.union1d(index_rows.removed, np.array(list(rows.values()), np.int64))
        if len(removed) == len(index_rows.ids):
            raise UserError(f"{file}: index {self.index.name!r} would be empty")
        with self._building(index_rows.embeddings, removed) as build:
            started = time.monotonic()
            _link(self.index.path / FILES, emptied(build.folder / FILES))
            return self._finish(build, len(index_rows.ids), started)

    def _fitting(self, embeddings: Artifact) -> IndexRows:
        """The index' rows. Raises ``UserError`` for embeddings that do not match the index."""
        mine, theirs = self.index.manifest, embeddings.manifest
        if mine["parents"]["model"] != theirs["parents"]["model"]:
            raise UserError(
                f"embeddings {embeddings.name!r} are of model {theirs['settings']['model']!r}, "
                f"index {self.index.name!r} of {mine['settings']['model']!r}"
            )
        if embeddings.name in dict(indexed_embeddings(self.index)):
            raise UserError(f"embeddings {embeddings.name!r} have changed since they were indexed; index again")
        index_rows, fresh = IndexRows(self.workspace, self.index), set(VectorStore(embeddings).ids)
        if known := next((name for _, name in index_rows.living() if name in fresh), None):
            raise UserError(f"index {self.index.name!r} has an id {known!r} already: `remove` it first")
        return index_rows

    @contextmanager
    def _building(self, embeddings: list[tuple[str, str]], removed: NDArray[np.int64]) -> Iterator[Build]:
        """Build the new index in a folder of its own. Raises ``UserError`` if the old one changed meanwhile."""
        with self.workspace.build(
            "indexes", self.index.name, self._run_spec(embeddings, removed), restart=True
        ) as build:
            assert isinstance(build, Build)
            if self.index.fingerprint != self.before:
                raise UserError(f"index {self.index.name!r} was changed by another process meanwhile: run this again")
            build.open_folder()
            (build.folder / REMOVED).unlink(missing_ok=True)
            if len(removed):
                np.save(build.folder / REMOVED, removed, allow_pickle=False)
            try:
                yield build
            except UserError:  # as from a backend that cannot add vectors
                shutil.rmtree(build.folder)
                raise

    def _run_spec(self, embeddings: list[tuple[str, str]], removed: NDArray[np.int64]) -> RunSpec:
        made = self.index.manifest
        parents = {"model": made["parents"]["model"]} | {f"embeddings/{name}": mark for name, mark in embeddings}
        settings = {**made["settings"], "embeddings": [name for name, _ in embeddings], "removed": len(removed)}
        return RunSpec(settings, (), parents)

    def _finish(self, build: Build, rows: int, started: float) -> dict[str, Any]:
        living = rows - build.run_spec.settings["removed"]
        counts = {"count": living, "dim": self.index.manifest["counts"]["dim"], "rows": rows}
        return finish(build, counts, started)


def _link(source: Path, target: Path) -> None:
    """Hard-link, else copy, a folder's files into another one; nothing changes them later."""
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)
