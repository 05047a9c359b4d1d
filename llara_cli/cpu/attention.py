"""Attention on CPUs, block by block: a block of queries attends to the keys from the first to the last that it may see.

PyTorch's kernel multiplies all queries with all keys (with a causal mask it skips whole blocks of 512 keys) and masks
the rest. In wide rows that is twice the work needed. Results differ by the order of additions only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llara_cli.cpu.kernel import Kernel, check_flash

BLOCK = 128
"""Queries per block: smaller blocks skip more products and take more calls."""
LEAST_WIDTH = 2 * BLOCK + 1
"""Shortest row for which blocks are faster."""
MOST_CAUSAL = 1024
"""Longest row for which a causal mask is split into blocks: beyond, PyTorch skips most keys itself."""
ALL = slice(None)


FLASH: Kernel[tuple[Callable[..., Any], Callable[..., Any]]] = Kernel(
    "attention in blocks",
    lambda: (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
    ),
    check_flash,
)
"""The kernel of PyTorch's own attention on CPUs, forward and backward."""
Place = tuple[slice, slice, slice]
"""Rows, heads and tokens."""


@dataclass(frozen=True)
class Block:
    """Queries of one or several rows, the keys that they see, and the mask added to their scores (queries, keys)."""

    queries: Place
    keys: Place
    added: Tensor


class Blocks:
    """The blocks of the masks that one forward uses."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Tensor, list[Block]]] = {}

    def suiting(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> list[Block] | None:
        """Blocks for arguments of ``functional.scaled_dot_product_attention``; None if that is faster or needed."""
        rows, heads, width = query.shape[:3] if query.dim() == 4 else (0, 0, 0)
        if width < LEAST_WIDTH or not _takes(query, key, value):
            return None
        if attn_mask is None:
            return causal_blocks(width) if is_causal and width <= MOST_CAUSAL else None
        if is_causal or attn_mask.dtype != torch.bool or attn_mask.shape != (rows, 1, width, width):
            return None
        if torch.get_num_threads() > heads:  # blocks of a single row would leave the other threads idle
            return None
        name = attn_mask.data_ptr(), tuple(attn_mask.shape), attn_mask.stride()
        if name not in self._known:  # the mask is kept too, or another one might get its address
            self._known[name] = attn_mask, blocks_of(attn_mask[:, 0])
        return self._known[name][1]


def _takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel, which does not check its inputs, supports these."""
    each = (query, key, value)
    plain = all(type(one) is Tensor and one.device.type == "cpu" and one.dtype == torch.float32 for one in each)
    if not plain or not torch.backends.cuda.flash_sdp_enabled():
        return False
    rows, heads, width, dim = query.shape
    like = all(one.dim() == 4 and one.stride(-1) == 1 and one.shape[::2] == (rows, width) for one in each)
    if not like or key.shape[-1] != dim or value.shape != key.shape:
        return False
    return heads % key.shape[1] == 0 and FLASH.op is not None


def causal_blocks(width: int) -> list[Block]:
    """Blocks of a causal mask, the same for all rows."""
    found = []
    for first in range(0, width, BLOCK):
        count = min(BLOCK, width - first)
        added = triangle()[:count, MOST_CAUSAL - BLOCK - first : MOST_CAUSAL - BLOCK + count]
        found.append(Block((ALL, ALL, slice(first, first + count)), (ALL, ALL, slice(0, first + count)), added))
    return found


@cache
def triangle() -> Tensor:
    """(BLOCK, MOST_CAUSAL): -inf above the diagonal of the last columns, else 0."""
    with torch.inference_mode(False):
        added = torch.zeros(BLOCK, MOST_CAUSAL)
        added[:, -BLOCK:] = torch.full((BLOCK, BLOCK), float("-inf")).triu(1)
        return added


def blocks_of(seen: Tensor) -> list[Block]:
    """Blocks of a mask (R, L, L), True where a query may see a key."""
    found = []
    for row in range(seen.shape[0]):
        for first in range(0, seen.shape[1], BLOCK):
            part = seen[row, first : first + BLOCK]
            columns = part.any(dim=0).nonzero()
            keys = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)
            added = torch.zeros(part[:, keys].shape).masked_fill_(~part[:, keys], float("-inf"))
            here = slice(row, row + 1)
            found.append(Block((here, ALL, slice(first, first + len(part))), (here, ALL, keys), added))
    return found


def attention(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float | None) -> Tensor:
    """(R, heads, L, dim) -> (R, heads, L, dim); keys and values have fewer heads if queries share them."""
    found: Tensor = _Attention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return found


def _flash() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The kernel; ``Blocks.suiting`` has checked it."""
    assert FLASH.op is not None
    return FLASH.op


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float | None
    ) -> Tensor:
        flash, _ = _flash()
        found, ctx.log_sums = torch.empty_like(query), []
        for block in blocks:
            queries, keys = block.queries, block.keys
            found[queries], log_sum = flash(query[queries], key[keys], value[keys], attn_mask=block.added, scale=scale)
            ctx.log_sums.append(log_sum)
        ctx.blocks, ctx.scale = blocks, scale
        ctx.save_for_backward(query, key, value, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        _, flash = _flash()
        query, key, value, found = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block, log_sum in zip(ctx.blocks, ctx.log_sums, strict=True):
            queries, keys = block.queries, block.keys
            of_query[queries], by_key, by_value = flash(
                upstream[queries], query[queries], key[keys], value[keys], found[queries], log_sum, 0.0, False,
                attn_mask=block.added, scale=ctx.scale,
            )  # fmt: skip
            of_key[keys] += by_key
            of_value[keys] += by_value
        return of_query, of_key, of_value, None, None
