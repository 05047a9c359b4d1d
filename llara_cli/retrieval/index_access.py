"""Opens an index of the workspace, converts its parameters, and reads vectors with progress."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral

from llara_cli.core import registry
from llara_cli.core.artifacts import Artifact
from llara_cli.core.config import shown
from llara_cli.core.errors import UserError
from llara_cli.core.protocols import IndexBackend, IndexOptions, Parameters, Vectors
from llara_cli.retrieval.vector_store import VectorStore

FILES = "backend"
"""Folder, inside an index artifact, that holds the backend's own files."""


def typed_parameters(given: Parameters, known: Mapping[str, type], backend: str) -> dict[str, int | float | str]:
    """Convert parameters of an index to the types that the backend declares.

    Raises ``UserError`` for an unknown name, with the known ones, or a value of another type.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"`parameters` must be a mapping of names to values, not {shown(given)}")
    parsed: dict[str, int | float | str] = {}
    for key, value in given.items():
        setting = f"`parameters[{key!r}]={value}`"
        if key not in known:
            names = ", ".join(known) or "none"
            raise UserError(f"{setting}: the {backend} index has no parameter {key!r} here; it has: {names}")
        kind = known[key]
        wrong = UserError(f"{setting}: {value!r} is not of type {kind.__name__}")
        if isinstance(value, bool) or (kind is int and not isinstance(value, str | Integral)):  # int() cuts fractions
            raise wrong
        try:
            parsed[key] = kind(value)
        except (TypeError, ValueError) as error:
            raise wrong from error
    return parsed


def open_index(artifact: Artifact, device: str = "cpu", note: Callable[[str], None] = warnings.warn) -> IndexBackend:
    """Open the index of an artifact on ``device``, with the parameters that it was built with."""
    settings = artifact.manifest["settings"]
    backend: type[IndexBackend] = registry.load("index", settings["backend"])
    parameters: Parameters = settings["parameters"]
    return backend.load(artifact.path / FILES, IndexOptions(settings["spec"], parameters, device, note))


class WithProgress:
    """The vectors of a store, with progress; a second pass is not reported again."""

    def __init__(self, store: VectorStore, progress: Callable[[int], None]) -> None:
        self._store = store
        self._progress = progress
        self._seen = 0

    @property
    def count(self) -> int:
        return self._store.count

    @property
    def dim(self) -> int:
        return self._store.dim

    def __iter__(self) -> Iterator[Vectors]:
        row = 0
        for block in self._store:
            yield block
            row += len(block)
            if row > self._seen:
                self._progress(row - self._seen)
                self._seen = row
