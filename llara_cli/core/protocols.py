"""What a backend is: the three interfaces that entry points implement.

A package adds a backend by declaring an entry point in the group ``llara.training``, ``llara.encoder`` or
``llara.index`` that names a subclass of the matching class below. The docstrings here are the whole contract;
``tests/conformance`` runs the same checks on every backend installed.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llara_cli.core.config import LoraConfig
from llara_cli.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from llara_cli.model.source import ModelSource
    from llara_cli.model.tokenizer import TextTokenizer

Role = Literal["query", "passage"]
Vectors = NDArray[np.float32]
"""(rows, dim), C order, L2-normalized."""
Progress = Callable[[int], None]
"""Told how many more are done."""


@dataclass(frozen=True)
class Hits:
    """What an index answers.

    ``scores``: (queries, k) float32 inner products, falling along each row; ``rows``: (queries, k) int64 positions of
    the vectors in the order they were added. Equal scores are ordered by ascending row. Where fewer than k vectors
    exist, the tail is row ``-1`` with score ``-inf``.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


class VectorBlocks(Protocol):
    """A stream of (rows, dim) float32 blocks that may be walked more than once (to train, then to add)."""

    @property
    def count(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def __iter__(self) -> Iterator[Vectors]: ...


Parameters = Mapping[str, int | float | str]


@dataclass(frozen=True)
class IndexOptions:
    """How to build or open an index: a backend's own ``spec``, its ``--set`` parameters, and the device.

    ``note`` is told what the user should hear.
    """

    spec: str | None = None
    parameters: Parameters = field(default_factory=dict)
    device: str = "cpu"
    note: Callable[[str], None] = field(default=warnings.warn, compare=False)


class IndexBackend(ABC):
    """Stores L2-normalized vectors and finds the nearest by inner product."""

    name: ClassVar[str]
    build_parameters: ClassVar[Mapping[str, type]] = {}
    """Names and types of what ``llara index --set`` accepts."""
    search_parameters: ClassVar[Mapping[str, type]] = {}
    """Names and types of what ``llara search --set`` accepts; those given at build become the saved defaults."""

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
        """Search parameters of this index that find more hits when they are raised; none where it finds all."""
        return ()

    def append(self, vectors: VectorBlocks) -> None:
        """Add the vectors of the stream; their rows go on from those that are there.

        Raises ``UserError`` where the width is not ``dim``, and where the backend cannot add.
        """
        raise UserError(f"the {self.name} index cannot add vectors: build it anew")

    @abstractmethod
    def search(self, queries: Vectors, k: int, parameters: Parameters | None = None) -> Hits:
        """The k nearest of each query (queries, dim). Raises ``UserError`` where the width is not ``dim``."""


@dataclass(frozen=True)
class EncoderOptions:
    """How to run an encoder. Lengths are total tokens, prompt and special tokens included.

    ``layout`` and ``attention``: how texts share a forward and how attention is computed, where a backend knows several
    ways. ``compile``: spend time before the first forward to have faster ones. ``note`` is told what the user should
    hear.
    """

    dtype: str = "auto"
    device: str = "auto"
    query_length: int | None = None
    passage_length: int | None = None
    batch_tokens: int | None = None
    layout: str = "auto"
    attention: str = "auto"
    compile: bool = False
    note: Callable[[str], None] = warnings.warn


@dataclass(frozen=True)
class Encoded:
    """``vectors``: (texts, dim) float32, L2-normalized, in the order given; the rest counts what happened."""

    vectors: Vectors
    tokens: int
    cut: int
    empty: int


@dataclass(frozen=True)
class EncoderFacts:
    """What is known of an encoder before its weights are loaded.

    ``dim``: width of a vector. Where the backend can tell: ``token_flops``, operations a token; ``token_numbers``,
    numbers that a forward holds a token at its peak.
    """

    parameters: int
    dim: int
    token_flops: float | None = None
    token_numbers: int | None = None


class EncoderBackend(ABC):
    """Turns texts into vectors."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def facts(cls, source: ModelSource) -> EncoderFacts:
        """What a plan tells of the model, without loading its weights. Raises ``UserError`` where it cannot run it."""

    @classmethod
    @abstractmethod
    def choose_length(cls, source: ModelSource, length: int | None) -> int | None:
        """Total tokens of a sequence where ``length`` is asked for, None: the default; the answer None: no limit.

        Raises ``UserError`` for a length above the model's positions. Does not load the weights.
        """

    @classmethod
    def count_tokens(
        cls, source: ModelSource, texts: Sequence[str], role: Role, length: int | None
    ) -> tuple[int, int] | None:
        """Text tokens, and all tokens that the model would see; None where it takes the weights to tell."""
        return None

    @classmethod
    @abstractmethod
    def load(cls, source: ModelSource, options: EncoderOptions) -> EncoderBackend:
        """Load the model. Raises ``UserError`` where a length does not fit the model or its prompt."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a vector."""

    @abstractmethod
    def encode(self, texts: Sequence[str], role: Role, progress: Progress | None = None) -> Encoded:
        """Encode texts; an empty text is the bare prompt, a long one is cut (the prompt never).

        ``progress`` is told how many more texts are done.
        """

    def encode_each(
        self, batches: Iterable[Sequence[str]], role: Role, progress: Progress | None = None
    ) -> Iterator[Encoded]:
        """``encode`` of each batch, in order. A backend may prepare the next while it computes one."""
        for texts in batches:
            yield self.encode(texts, role, progress)


@dataclass(frozen=True)
class TrainingSetup:
    """What a training backend is told: tokens whose embedding rows must train, the seed of their start, the adapter.

    ``dtype`` is the compute dtype: frozen weights may be kept in it, trainable ones are fp32; all are bf16 where
    ``bf16_weights`` says that the optimizer rounds stochastically. ``note`` is told what the user should hear.
    """

    dtype: torch.dtype
    new_tokens: tuple[str, ...] = ()
    seed: int = 0
    adapter: LoraConfig = field(default_factory=LoraConfig)
    bf16_weights: bool = False
    note: Callable[[str], None] = field(default=warnings.warn, compare=False)


class TrainingBackend(ABC):
    """Decides which weights train, and how a trained model becomes a checkpoint."""

    name: ClassVar[str]

    @abstractmethod
    def load(self, source: ModelSource, tokenizer: TextTokenizer, setup: TrainingSetup) -> PreTrainedModel:
        """The causal LM, ready to train: trainable weights are fp32 and have ``requires_grad``.

        ``setup.new_tokens`` are added to model and ``tokenizer`` where they lack them.
        """

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
        """Write a checkpoint that any Hugging Face tool loads (safetensors and config) into ``folder``.

        Called once, at the end: the model need not be usable afterwards.
        """
