"""The rows of an index: the embeddings that they come from, and the rows that were removed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.artifacts import Artifact
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.workspace import Workspace
from llara_cli.data.id_list import Joined
from llara_cli.data.text_files import read_lines
from llara_cli.retrieval.vector_store import VectorStore

REMOVED = "removed.npy"
"""File of sorted row numbers in an index artifact's folder."""


def indexed_embeddings(index: Artifact) -> list[tuple[str, str]]:
    """Name and fingerprint of each embeddings artifact in an index, in the order of its rows."""
    settings, parents = index.manifest["settings"], index.manifest["parents"]
    names = settings["embeddings"]
    if isinstance(names, str):
        return [(names, parents["embeddings"])]
    return [(name, parents[f"embeddings/{name}"]) for name in names]


class IndexRows:
    """The vector stores behind an index: ids and texts of its rows."""

    def __init__(self, workspace: Workspace, index: Artifact) -> None:
        """Raises ``UserError`` if a store is gone, or was made again since."""
        self.index = index
        self.embeddings = indexed_embeddings(index)
        self.stores = [_store(workspace, index, *member) for member in self.embeddings]

    @cached_property
    def ids(self) -> Joined:
        """The id of each row, including removed ones."""
        return Joined([store.ids for store in self.stores])

    @cached_property
    def removed(self) -> NDArray[np.int64]:
        """Removed rows, sorted. Raises ``LlaraError`` if their file is damaged."""
        wanted = self.index.manifest["settings"].get("removed", 0)
        if not wanted:
            return np.zeros(0, np.int64)
        path = self.index.path / REMOVED
        try:
            rows: NDArray[np.int64] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise LlaraError(f"{path}: missing or damaged: build index {self.index.name!r} again") from error
        if rows.shape != (wanted,) or rows.dtype != np.int64 or not _ascending(rows, len(self.ids)):
            raise LlaraError(f"{path}: damaged: not {wanted} ascending rows: build index {self.index.name!r} again")
        return rows

    def living(self) -> Iterator[tuple[int, str]]:
        """Row number and id of all rows that were not removed."""
        gone = set(self.removed.tolist())
        return ((row, name) for row, name in enumerate(self.ids) if row not in gone)

    def text(self, row: int) -> dict[str, Any]:
        """``title`` and ``text`` of a row; only these are read."""
        part, place = self.ids.place(row)
        return self.stores[part].texts[place]


def _ascending(rows: NDArray[np.int64], count: int) -> bool:
    """Whether these are sorted, unique row numbers below ``count``."""
    return bool(rows[0] >= 0 and rows[-1] < count and (np.diff(rows) > 0).all())


def _store(workspace: Workspace, index: Artifact, name: str, fingerprint: str) -> VectorStore:
    artifact = workspace.get("embeddings", name)
    if artifact.fingerprint != fingerprint:
        raise UserError(f"embeddings {name!r} have changed since index {index.name!r} was built; index again")
    return VectorStore(artifact)


def read_id_file(path: Path) -> dict[str, int]:
    """Read ids, one per line, with their line numbers. Raises ``UserError`` if the file is unreadable or empty."""
    found = {line: number for number, line in read_lines(path) if line}
    if not found:
        raise UserError(f"{path}: no id in it")
    return found
