"""The interface of a training objective, and the losses that it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from llara_cli.training.engine import Engine

ItemT_contra = TypeVar("ItemT_contra", contravariant=True)


@dataclass
class BatchLosses:
    """Mean losses of an optimizer batch, ``None`` for those that nothing in the batch has, and the batch's size."""

    loss: float = 0.0
    ebae: float | None = None
    ebar: float | None = None
    lm: float | None = None
    texts: int = 0
    tokens: int = 0


class Objective(Protocol[ItemT_contra]):
    """Adds the gradients of one optimizer batch to the weights and reports the batch's means."""

    seed: int

    @property
    def execution(self) -> dict[str, Any]:
        """How it is computed: choices that change results by rounding only."""

    def backward(self, items: Sequence[ItemT_contra], engine: Engine = ...) -> BatchLosses:
        """``items``: the whole batch, the same in every process; each process computes its share."""
