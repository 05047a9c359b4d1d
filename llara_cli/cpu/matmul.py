"""Matrix products and attention of a decoder's layers on CPUs, and the sums of their weights' gradients.

PyTorch multiplies fp32 matrices with MKL, which reaches nine tenths of an AMD processor's speed, and half on one with
AVX-512; oneDNN, which PyTorch ships too, reaches all of it. And in each backward PyTorch allocates a new tensor for
each weight's gradient before adding it: with several forwards per batch every gradient is written, read and written
again for each forward, and embedding gradients are filled with zeros first. Here products are added to
``weight.grad`` directly. Results differ by the order of additions only, and equal calls have equal results.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from llara_cli.cpu.attention import Blocks, attention
from llara_cli.cpu.kernel import Kernel, check_linear
from llara_cli.cpu.recompute import ACTIVATIONS, PRODUCTS, RecomputedTensors, SavedTensor

LEAST_WORK = 2**25
"""Fewest multiplications for which oneDNN is faster: it compiles code for each shape (about a millisecond, once)."""
KEPT_SHAPES = 64
"""Shapes whose compiled code oneDNN caches: more than a layer has. By default it caches 1,024, of up to half a megabyte
each, and forwards of mixed lengths have ever new shapes. Set as environment variables for this process and its
children, before the first use of oneDNN; variables that the user has set are kept."""
if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # the older name
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_SHAPES))
os.environ.setdefault("LRU_CACHE_CAPACITY", str(KEPT_SHAPES))  # the cache of PyTorch's wrapper


ONEDNN_LINEAR: Kernel[Callable[..., Any]] = Kernel(
    "oneDNN's matrix product", lambda: torch.ops.mkldnn._linear_pointwise, check_linear
)


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN is available and multiplies fp32 faster than PyTorch's default."""
    there = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return there and processor_is_amd()


@cache
def onednn_sums_faster() -> bool:
    """Whether oneDNN is faster for sums of weights' gradients too, although it copies a transposed operand first."""
    return onednn_is_faster() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def processor_is_amd() -> bool:
    described = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (described.read_text() if described.is_file() else platform.processor())


def wide(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, or float32 if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def gradient_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the weight's gradient: ``grad_dtype`` if set, else its own."""
    return (weight.grad_dtype if weight.is_leaf else None) or weight.dtype


def suits_onednn(values: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is faster for these: (..., in), (out, in)."""
    enough = values.numel() * weight.shape[0] >= LEAST_WORK
    plain = values.device.type == "cpu" and values.dtype == weight.dtype == torch.float32
    return plain and enough and onednn_is_faster() and ONEDNN_LINEAR.op is not None


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``, without a gradient: (..., in), (out, in) -> (..., out)."""
    onednn = ONEDNN_LINEAR.op if suits_onednn(values, weight) else None
    if onednn is None:
        return functional.linear(values, weight, bias)
    if bias is not None:  # oneDNN assumes contiguous memory
        bias = bias.expand(len(weight)).contiguous()
    found: Tensor = onednn(values, weight, bias, "none", [], "")
    return found


def matmul_transposed(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right``, without a gradient: (tokens, a), (tokens, b) -> (a, b)."""
    return linear(left.T, right.T) if onednn_sums_faster() else left.T @ right


def add_matmul_transposed(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left.T @ right``, in place: (a, b), (tokens, a), (tokens, b).

    oneDNN first copies the narrower of the two; if the total's transpose is contiguous, always ``right``.
    """
    if not total.dtype == left.dtype == right.dtype:
        total += left.T @ right.to(left.dtype)
    elif not (suits_onednn(left.T, right.T) and onednn_sums_faster()):
        total.addmm_(left.T, right)
    elif left.shape[1] > right.shape[1] or total.stride(0) == 1 < total.stride(1):
        total.T.add_(linear(right.T, left.T))
    else:
        total.add_(matmul_transposed(left, right))


def zeros_for_sum(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of a weight's shape for ``add_matmul_transposed``, strided so that it copies the narrower operand."""
    plain = weight.device.type == "cpu" and weight.dtype == dtype == torch.float32 and weight.dim() == 2
    if plain and weight.shape[0] > weight.shape[1] and onednn_sums_faster():
        return torch.zeros(weight.shape[::-1], dtype=dtype).T
    return torch.zeros_like(weight, dtype=dtype)


class CpuKernels(TorchFunctionMode):
    """Context in which models use ``linear`` and attention in blocks; with gradients: see ``lean_training``."""

    def __init__(self, recomputed: RecomputedTensors | None = None) -> None:
        super().__init__()
        self._recomputed = recomputed
        self._blocks = Blocks()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: Mapping[str, Any] = kwargs or {}
        if func is functional.linear:
            return self._linear(*args, **given)
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **given)
        if self._recomputed is None:
            return func(*args, **given)
        if func is functional.embedding:
            return _embedding(*args, **given)
        made = func(*args, **given)
        if func in PRODUCTS or func in ACTIVATIONS:
            self._recomputed.note(made, func, args, given)
        return made

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        ours = self._recomputed is not None or not torch.is_grad_enabled()
        if ours and not dropout_p and not torch.is_autocast_enabled("cpu"):
            blocks = self._blocks.suiting(query, key, value, attn_mask, is_causal)
            if blocks is not None:
                return attention(query, key, value, blocks, scale)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        plain = type(weight) is nn.Parameter and not torch.is_autocast_enabled("cpu")
        if plain and not torch.is_grad_enabled():
            return linear(input, weight, bias)
        if plain and self._recomputed is not None and input.dim() > 1 and input.dtype == weight.dtype and _sums(weight):
            found: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
            return found
        return functional.linear(input, weight, bias)


@contextmanager
def lean_training() -> Iterator[None]:
    """Context of a forward in training: it uses the kernels too, and its backward allocates and keeps less.

    It adds gradients of leaf weights in place, and recomputes what is cheap (``RecomputedTensors``). Only for a single
    process without gradient checkpointing: a recomputed forward would run outside this context, hooks registered on a
    weight after the forward are not called, and ``torch.autograd.grad`` adds to every weight's ``grad``.
    """
    recomputed = RecomputedTensors()
    with recomputed, CpuKernels(recomputed):
        yield


def _sums(weight: Tensor) -> bool:
    """Whether a parameter's gradient may be added in place: it is on the CPU and has no hooks."""
    hooked = weight._backward_hooks or weight._post_accumulate_grad_hooks
    return weight.device.type == "cpu" and not hooked


def _embedding(
    ids: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    plain = type(weight) is nn.Parameter and max_norm is None and not scale_grad_by_freq and not sparse
    if plain and torch.is_grad_enabled() and weight.requires_grad and _sums(weight):
        found: Tensor = _Embedding.apply(ids, weight, padding_idx)  # type: ignore[no-untyped-call]
        return found
    return functional.embedding(ids, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values if weight.requires_grad else None)
        ctx.weight = SavedTensor(weight)  # itself: unpacking a saved tensor may copy it
        return linear(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (values,), weight = ctx.saved_tensors, ctx.weight.tensor()
        flat = upstream.flatten(0, -2)
        if values is not None:
            inner = values.flatten(0, -2)
            if weight.grad is None:
                weight.grad = matmul_transposed(flat, inner).to(gradient_dtype(weight))
            else:
                add_matmul_transposed(weight.grad, flat, inner)
        of_values = linear(upstream, weight.T) if ctx.needs_input_grad[0] else None
        return of_values, None, flat.sum(dim=0) if ctx.needs_input_grad[2] else None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        ctx.padding = None if padding is None else padding % len(weight)
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, None, None]:
        (ids,), weight = ctx.saved_tensors, ctx.weight
        flat, rows = upstream.flatten(0, -2), ids.flatten()
        if ctx.padding is not None:
            flat = flat.masked_fill((rows == ctx.padding)[:, None], 0)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight, dtype=gradient_dtype(weight))
        weight.grad.index_add_(0, rows, flat.to(weight.grad.dtype))
        return None, None, None
