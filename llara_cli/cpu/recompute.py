"""Recomputes tensors in backward instead of saving them: cheap functions of tensors that are saved anyway.

Autograd saves the inputs of every operation. In a decoder layer half of these are element-wise products and
activations whose own inputs are saved as well: normalized states, the activated gate, its product with the other
branch. They are as large as the outputs of matrix products and take next to no time to compute, so backward recomputes
them, with the same result to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

PRODUCTS: frozenset[Callable[..., Any]] = frozenset({torch.Tensor.mul, torch.mul})
ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset({functional.silu, functional.gelu})


class SavedTensor:
    """A tensor saved for backward, checked for in-place changes, which autograd does not do with saved-tensor hooks."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    def announce(self) -> None:
        """Do nothing."""

    def tensor(self) -> Tensor:
        """The tensor. Raises ``RuntimeError`` if it was modified since."""
        if self._tensor._version != self._version:
            raise RuntimeError("a tensor that backward needs was modified in place")
        return self._tensor


class Recomputation:
    """Recomputes a tensor; every use is announced beforehand, so that the last one can free it."""

    def __init__(self, make: Callable[..., Tensor], operands: tuple[Saved, ...], options: Mapping[str, Any]) -> None:
        self._make, self.operands, self._options = make, operands, options
        self._uses = 0
        self._made: Tensor | None = None
        for operand in operands:
            operand.announce()

    def announce(self) -> None:
        """Count one more use."""
        self._uses += 1

    def tensor(self) -> Tensor:
        """The tensor, computed now or for an earlier use. Raises ``RuntimeError`` as ``SavedTensor.tensor`` does."""
        if self._made is None:
            self._made = self._make(*(operand.tensor() for operand in self.operands), **self._options)
        made = self._made
        self._uses -= 1
        if self._uses <= 0:
            self._made = None
        return made


Saved: TypeAlias = SavedTensor | Recomputation


@dataclass(frozen=True)
class KnownRecomputation:
    """The recomputation of a tensor, valid while the tensor exists unchanged."""

    made: weakref.ref[Tensor]
    version: int
    recipe: Recomputation

    def makes(self, tensor: Tensor) -> bool:
        """Whether it is the recomputation of ``tensor``."""
        return self.made() is tensor and tensor._version == self.version


class RecomputedTensors(saved_tensors_hooks):
    """Context in which tensors passed to ``note`` are not saved for backward if their operands are."""

    def __init__(self) -> None:
        super().__init__(self.pack, lambda kept: kept.tensor())
        self._known: dict[int, KnownRecomputation] = {}

    def note(self, made: Tensor, function: Callable[..., Any], given: tuple[Any, ...], options: Any) -> None:
        """Record that ``function`` computed ``made`` from ``given``, if ``given`` is saved anyway.

        If all operands need a gradient, autograd saves them all; weights stay in memory anyway.
        """
        operands = [operand for operand in given if isinstance(operand, Tensor)]
        whole = len(operands) == len(given) == (2 if function in PRODUCTS else 1)
        there = (each.requires_grad or isinstance(each, nn.Parameter) for each in operands)
        in_place = any(operand is made for operand in operands)
        if whole and made.requires_grad and all(there) and not in_place:
            key = id(made)
            recipe = Recomputation(function, tuple(map(self._operand, operands)), dict(options or {}))
            reference = weakref.ref(made, lambda _: self._known.pop(key, None))
            self._known[key] = KnownRecomputation(reference, made._version, recipe)

    def _operand(self, operand: Tensor) -> Saved:
        return self._recipe(operand) or SavedTensor(operand.detach())

    def _recipe(self, tensor: Tensor) -> Recomputation | None:
        noted = self._known.get(id(tensor))
        return noted.recipe if noted is not None and noted.makes(tensor) else None

    def pack(self, tensor: Tensor) -> Saved:
        kept = self._recipe(tensor) or SavedTensor(tensor.detach())  # itself would be a cycle that Python cannot see
        kept.announce()
        return kept
