"""Private operations of PyTorch, compared with plain PyTorch before their first use and not used if they differ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from llara_cli.core.reporter import LlaraWarning

RTOL, ATOL = 1e-4, 1e-5
"""Tolerances against plain PyTorch, as orders of addition differ."""
OpT = TypeVar("OpT")


class Kernel(Generic[OpT]):
    """A private operation that the installed PyTorch may lack or have changed.

    Args:
        name: name in the warning.
        find: returns the operation, or raises if there is none.
        check: raises if the operation's results differ from plain PyTorch's.
    """

    def __init__(self, name: str, find: Callable[[], OpT], check: Callable[[OpT], None]) -> None:
        self.name, self._find, self._check = name, find, check

    @cached_property
    def op(self) -> OpT | None:
        """The operation, checked once (milliseconds); None, after one warning, if plain PyTorch must be used."""
        try:
            with _outside():
                op = self._find()
                self._check(op)
        except Exception as error:  # a private operation may raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(
                f"{self.name} does not work with PyTorch {torch.__version__} ({reason}): plain PyTorch computes"
                " instead, with the same results, more slowly",
                LlaraWarning,
                stacklevel=2,
            )
            return None
        return op


@contextmanager
def _outside() -> Iterator[None]:
    """Context with gradients and without autocast, whatever is on outside."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield


def _numbers(*shape: int, seed: int) -> Tensor:
    """Random numbers that do not change the state of PyTorch's generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _compare(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=RTOL, atol=ATOL)


def check_linear(linear: Callable[..., Any]) -> None:
    """Compare oneDNN's ``values @ weight.T + bias`` with ``functional.linear``, also with a transposed operand."""
    values, weight, bias = _numbers(6, 5, seed=0), _numbers(4, 5, seed=1), _numbers(4, seed=2)
    found = [
        linear(values, weight, bias, "none", [], ""),
        linear(values, weight, None, "none", [], ""),
        linear(values.T, _numbers(3, 6, seed=3), None, "none", [], ""),
    ]
    expected = [
        functional.linear(values, weight, bias),
        functional.linear(values, weight),
        functional.linear(values.T, _numbers(3, 6, seed=3)),
    ]
    _compare(found, expected)


def check_flash(flash: tuple[Callable[..., Any], Callable[..., Any]]) -> None:
    """Compare attention with an additive mask, and its gradients, with ``scaled_dot_product_attention``."""
    forward, backward = flash
    query, key, value = (_numbers(1, 2, 3, 4, seed=seed).requires_grad_() for seed in range(3))
    added = torch.zeros(3, 3).masked_fill_(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=0.3)
    upstream = _numbers(1, 2, 3, 4, seed=4)
    gradients = torch.autograd.grad(expected, (query, key, value), upstream)
    with torch.no_grad():
        found, log_sum = forward(query, key, value, attn_mask=added, scale=0.3)
        computed = backward(upstream, query, key, value, found, log_sum, 0.0, False, attn_mask=added, scale=0.3)
    _compare([found, *computed], [expected.detach(), *gradients])
