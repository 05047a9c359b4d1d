"""The interfaces of encoder and training backends.

A package adds a backend by declaring an entry point in the group ``llara.encoder`` or ``llara.training`` that names a
subclass of the matching class below. The docstrings here are the whole contract; ``tests/conformance`` runs the same
checks on every backend installed.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from llara_cli.core.config import LoraConfig
from llara_cli.core.protocols import Advance, Role, Vectors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from llara_cli.model.source import ModelSource
    from llara_cli.model.tokenizer import TextTokenizer


@dataclass(frozen=True)
class EncoderOptions:
    """How to run an encoder. Lengths are total tokens, prompt and special tokens included.

    ``layout`` and ``attention``: how texts share a forward and how attention is computed, where a backend has a choice.
    ``compile``: compile the model, so that the first forward is slow and the others fast. ``note`` is called with what
    the user should know.
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
    """``vectors``: (texts, dim) float32, L2-normalized, in the order given; the rest are counts."""

    vectors: Vectors
    tokens: int
    cut: int
    empty: int


@dataclass(frozen=True)
class EncoderFacts:
    """Size and shape of an encoder, known before its weights are loaded.

    ``dim``: width of a vector. ``token_flops``: operations per token; ``token_numbers``: numbers per token that a
    forward holds at its peak; None if the backend does not know.
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
        """Facts for a dry run, without loading the weights. Raises ``UserError`` for a model that it cannot run."""

    @classmethod
    @abstractmethod
    def choose_length(cls, source: ModelSource, length: int | None) -> int | None:
        """Total tokens of a sequence for the ``length`` asked for (None: the default); returns None for no limit.

        Raises ``UserError`` for a length above the model's positions. Does not load the weights.
        """

    @classmethod
    def count_tokens(
        cls, source: ModelSource, texts: Sequence[str], role: Role, length: int | None
    ) -> tuple[int, int] | None:
        """Count text tokens, and all tokens of the forwards; None if that takes the weights."""
        return None

    @classmethod
    @abstractmethod
    def load(cls, source: ModelSource, options: EncoderOptions) -> EncoderBackend:
        """Load the model. Raises ``UserError`` if a length does not fit the model or its prompt."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of a vector."""

    @abstractmethod
    def encode(self, texts: Sequence[str], role: Role, progress: Advance | None = None) -> Encoded:
        """Encode texts; an empty text is the bare prompt, a long one is cut (the prompt never).

        ``progress`` is called with how many more texts are done.
        """

    def encode_each(
        self, batches: Iterable[Sequence[str]], role: Role, progress: Advance | None = None
    ) -> Iterator[Encoded]:
        """``encode`` of each batch, in order. A backend may prepare the next while it computes one."""
        for texts in batches:
            yield self.encode(texts, role, progress)


@dataclass(frozen=True)
class TrainingSetup:
    """Settings of a training backend: tokens whose embedding rows must train, the seed of these rows, the adapter.

    ``dtype`` is the compute dtype: frozen weights may be kept in it, trainable ones are fp32; all are bf16 where
    ``bf16_weights`` says that the optimizer rounds stochastically. ``note`` is called with what the user should know.
    """

    dtype: torch.dtype
    new_tokens: tuple[str, ...] = ()
    seed: int = 0
    adapter: LoraConfig = field(default_factory=LoraConfig)
    bf16_weights: bool = False
    note: Callable[[str], None] = field(default=warnings.warn, compare=False)


class TrainingBackend(ABC):
    """Decides which weights train, and how a trained model is saved."""

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
