"""Tensors that backward makes again instead of keeping them: cheap functions of others that it keeps anyway.

Autograd keeps what every operation was given. In a decoder's layer half of that are element-wise products and
activations whose own operands are kept as well: normalised states, the activated gate, its product with the other
branch. They are as large as what a matrix product makes and take next to no time, so backward computes them again, with
the same result to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

PRODUCTS: frozenset[Callable[..., Any]] = frozenset({torch.Tensor.mul, torch.mul})
ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset({functional.silu, functional.gelu})


class Recipe:
    """How one tensor is made; every use is announced, so that the last one can drop what the first one made."""

    def __init__(self, make: Callable[..., Tensor], operands: tuple[Kept, ...], options: Mapping[str, Any]) -> None:
        self._make, self._operands, self._options = make, operands, options
        self._versions = [operand._version for operand in operands if isinstance(operand, Tensor)]
        self._uses = 0
        self._made: Tensor | None = None
        for operand in operands:
            if isinstance(operand, Recipe):
                operand.announce()

    def announce(self) -> None:
        """One more will ask for the tensor."""
        self._uses += 1

    def tensor(self) -> Tensor:
        """The tensor, made now or for an earlier use. Raises ``RuntimeError`` where an operand was written since."""
        if [operand._version for operand in self._operands if isinstance(operand, Tensor)] != self._versions:
            raise RuntimeError("a tensor that backward needs was modified in place")
        if self._made is None:
            self._made = self._make(*map(unpacked, self._operands), **self._options)
        made = self._made
        self._uses -= 1
        if self._uses <= 0:
            self._made = None
        return made


Kept: TypeAlias = Tensor | Recipe


def unpacked(kept: Kept) -> Tensor:
    """What was kept, or what its recipe makes."""
    return kept.tensor() if isinstance(kept, Recipe) else kept


class Remaking(saved_tensors_hooks):
    """Within it, what ``note`` was told of is not kept for backward where its operands are."""

    def __init__(self) -> None:
        super().__init__(self._pack, unpacked)
        self._known: dict[int, tuple[weakref.ref[Tensor], Recipe]] = {}

    def note(self, made: Tensor, function: Callable[..., Any], given: tuple[Any, ...], options: Any) -> None:
        """``made`` is what ``function`` made of ``given``, which is noted where autograd keeps all of ``given``."""
        operands = [operand for operand in given if isinstance(operand, Tensor)]
        kept = len(operands) == len(given) == (2 if function in PRODUCTS else 1)
        if kept and torch.is_grad_enabled() and all(operand.requires_grad for operand in operands):
            key = id(made)
            recipe = Recipe(function, tuple(map(self._operand, operands)), dict(options or {}))
            self._known[key] = weakref.ref(made, lambda _: self._known.pop(key, None)), recipe

    def _operand(self, operand: Tensor) -> Kept:
        return self._recipe(operand) or operand.detach()

    def _recipe(self, tensor: Tensor) -> Recipe | None:
        reference, recipe = self._known.get(id(tensor), (None, None))
        return recipe if reference is not None and reference() is tensor else None

    def _pack(self, tensor: Tensor) -> Kept:
        recipe = self._recipe(tensor)
        if recipe is None:
            return tensor
        recipe.announce()
        return recipe
