"""The interface of index backends, and types shared by all backends.

A package adds an index backend by declaring an entry point in the group ``llara.index`` that names a subclass of
``IndexBackend``. The docstrings here are the whole contract; ``tests/conformance`` runs the same checks on every
backend installed. Encoder and training backends: ``llara_cli.model.backends``.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.config import Parameters as Parameters
from llara_cli.core.config import Role as Role
from llara_cli.core.errors import UserError

Vectors = NDArray[np.float32]
"""(rows, dim), C order, L2-normalized."""
Advance = Callable[[int], None]
"""Called with the number of items that were just done."""


@dataclass(frozen=True)
class Hits:
    """Results of a search.

    ``scores``: (queries, k) float32 inner products, in descending order; ``rows``: (queries, k) int64 positions of
    the vectors in the order they were added. Equal scores are ordered by ascending row. Where fewer than k vectors
    exist, the tail is row ``-1`` with score ``-inf``.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


class VectorBlocks(Protocol):
    """A stream of (rows, dim) float32 blocks that can be iterated more than once (to train, then to add)."""

    @property
    def count(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def __iter__(self) -> Iterator[Vectors]: ...


@dataclass(frozen=True)
class IndexOptions:
    """How to build or open an index: a backend's own ``spec``, its parameters, and the device.

    ``note`` is called with what the user should know.
    """

    spec: str | None = None
    parameters: Parameters = field(default_factory=dict)
    device: str = "cpu"
    note: Callable[[str], None] = field(default=warnings.warn, compare=False)


class IndexBackend(ABC):
    """Stores L2-normalized vectors and finds the nearest by inner product."""

    name: ClassVar[str]
    build_parameters: ClassVar[Mapping[str, type]] = {}
    """Names and types of the parameters of a build (``llara index --set``)."""
    search_parameters: ClassVar[Mapping[str, type]] = {}
    """Names and types of the parameters of a search; those given at build become the saved defaults."""

    @classmethod
    @abstractmethod
    def build(cls, vectors: VectorBlocks, options: IndexOptions) -> IndexBackend:
        """Index every vector of the stream. Raises ``UserError`` for a spec or parameter that it does not know."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the backend's own files into the existing, empty ``folder``."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, options: IndexOptions) -> IndexBackend:
        """Open what ``save`` wrote. Raises ``LlaraError`` for damaged files."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Vectors stored."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def widening(self) -> Sequence[str]:
        """Search parameters of this index that, when raised, find more hits; none if it always finds all."""
        return ()

    def append(self, vectors: VectorBlocks) -> None:
        """Add the vectors of the stream after the existing rows.

        Raises ``UserError`` if the width is not ``dim``, or the backend cannot add vectors.
        """
        raise UserError(f"the {self.name} index cannot add vectors: build it anew")

    @abstractmethod
    def search(self, queries: Vectors, k: int, parameters: Parameters | None = None) -> Hits:
        """The k nearest vectors of each query (queries, dim). Raises ``UserError`` if the width is not ``dim``."""
