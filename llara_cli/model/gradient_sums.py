"""Gradients of weights, added where they are summed up.

PyTorch makes a new tensor of each weight's gradient in each backward and then adds it: with several forwards a batch,
every weight is written, read and written again once a forward, and every table of embeddings filled with zeros. Here
the products are added to ``weight.grad`` as they are computed. The sums are the same up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class SummedInPlace(TorchFunctionMode):
    """Within it, ``linear`` and ``embedding`` add the gradients of leaf weights on a CPU in their backward.

    For one process without recomputation or ``torch.compile`` only: hooks of the weights see nothing of it, and a
    forward that backward repeats would not be repeated within it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: Mapping[str, Any] = kwargs or {}
        if func is functional.linear and _suits(*args, **given):
            return _Linear.apply(*args, **given)  # type: ignore[no-untyped-call]
        if func is functional.embedding:
            return _embedding(*args, **given)
        return func(*args, **given)


def _embedding(
    ids: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    if max_norm is None and not scale_grad_by_freq and not sparse and _suits(None, weight):
        found: Tensor = _Embedding.apply(ids, weight, padding_idx)  # type: ignore[no-untyped-call]
        return found
    return functional.embedding(ids, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)


def _suits(values: Tensor | None, weight: Any = None, bias: Tensor | None = None) -> bool:
    """Whether a weight's gradient can be added by us."""
    return (
        torch.is_grad_enabled()
        and type(weight) is nn.Parameter
        and weight.requires_grad
        and weight.device.type == "cpu"
        and not weight._backward_hooks
        and not weight._post_accumulate_grad_hooks
        and not torch.is_autocast_enabled("cpu")
        and (values is None or (values.dim() > 1 and values.dtype == weight.dtype))
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return functional.linear(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        values, weight = ctx.saved_tensors
        flat, inner = upstream.flatten(0, -2), values.flatten(0, -2)
        if weight.grad is None:
            weight.grad = flat.T @ inner
        else:
            weight.grad.addmm_(flat.T, inner)
        of_values = upstream @ weight if ctx.needs_input_grad[0] else None
        of_bias = flat.sum(dim=0) if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[2] else None
        return of_values, None, of_bias


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None = None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = None if padding is None else padding % len(weight)
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, None, None]:
        ids, weight = ctx.saved_tensors
        flat, rows = upstream.flatten(0, -2), ids.flatten()
        if ctx.padding is not None:
            flat = flat.masked_fill((rows == ctx.padding)[:, None], 0)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, rows, flat)
        return None, None, None
