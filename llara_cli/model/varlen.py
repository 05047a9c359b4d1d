"""Attention over trees without a mask: one call for segments of different lengths.

Queries stay as they lie, (trunk SELF)(NEXT); keys and values are gathered as (trunk SELF)(trunk NEXT). Each segment is
causal from its end: the last query sees all keys, the one before it all but the last. So NEXT sees the trunk and
itself, and needs no mask.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from llara_cli.model.architecture import compute_dtype, dtype_name
from llara_cli.model.sequences import PADDING, Ids, TokenRows
from llara_cli.model.to_device import to_device

VARLEN = "llara_varlen"
"""The name under which this attention is registered with transformers."""
PADDING_TOKENS = 256
"""Most tokens of a segment of padding, which attends to itself: short segments cost little."""
SHORTEST = 128
"""Lower limit of the longest segment's length, so that few lengths are compiled for."""
BEYOND = ("softcap", "s_aux", "position_bias", "head_mask")
"""Attention arguments of layers that the kernel does not support."""
GROUPS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""PyTorch before 2.12 has no ``enable_gqa``: queries share heads of keys without it."""


@dataclass(frozen=True)
class Segments:
    """The queries and keys of segments, in rows taken one after the other.

    Attributes:
        queries: (segments,) tokens of each.
        keys: (segments,) tokens of each, as many or more.
        order: (keys of all,) the token of each key.
    """

    queries: Ids
    keys: Ids
    order: Ids


def why_no_kernel(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernel does not support a device or a dtype; None: it does. A CPU uses ``reference``."""
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return f"{device} has no kernel for it (a GPU of compute capability 8.0 has)"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its kernel computes in bf16 or fp16, not in {dtype_name(dtype)}"
    return None


def segments_of(token_rows: TokenRows) -> Segments:
    """The segments of token rows: a trunk with its first branch, and each further branch with the trunk's keys.

    Padding has segments of its own.
    """
    starts = _run_starts(token_rows)
    tree, branch = token_rows.tree.reshape(-1)[starts], token_rows.branch.reshape(-1)[starts]
    lengths = np.diff(starts, append=token_rows.tree.size)
    run = np.arange(len(starts))
    trunk = np.maximum.accumulate(np.where(branch == 0, run, 0))
    of_trunk = (branch > 0) & (branch[trunk] == 0) & (tree == tree[trunk])
    goes_on = of_trunk & (trunk == run - 1)
    again = of_trunk & ~goes_on
    repeated = np.where(again, lengths[trunk], 0)
    first = np.flatnonzero(~goes_on)
    pieces = np.stack([starts[trunk], starts], axis=1).reshape(-1), np.stack([repeated, lengths], axis=1).reshape(-1)
    return Segments(np.add.reduceat(lengths, first), np.add.reduceat(lengths + repeated, first), _ranges(*pieces))


def _run_starts(token_rows: TokenRows) -> Ids:
    """Indices at which a trunk, a branch, or padding begins."""
    index = np.arange(token_rows.tree.size).reshape(token_rows.tree.shape)
    begins = np.diff(token_rows.tree, axis=1, prepend=PADDING - 1) != 0
    begins |= np.diff(token_rows.branch, axis=1, prepend=0) != 0
    begins |= ~token_rows.real & (index % PADDING_TOKENS == 0)
    return np.flatnonzero(begins)


def _ranges(starts: Ids, lengths: Ids) -> Ids:
    """The numbers in ranges, concatenated."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])


def places_of(order: Ids, tokens: int) -> tuple[Ids, NDArray[np.bool_]]:
    """Places of each token among the keys, (most copies, tokens), and which of these exist."""
    counts = np.bincount(order, minlength=tokens)
    by_token = np.argsort(order, kind="stable")
    copy = np.arange(counts.max())[:, None]
    first = np.cumsum(counts) - counts
    return by_token[np.minimum(first + copy, len(order) - 1)], copy < counts


class Gathering(NamedTuple):
    """``order`` and ``places_of`` it, on the device."""

    order: Tensor
    places: Tensor
    there: Tensor


class Plan(NamedTuple):
    """``Segments`` as attention takes them.

    Attributes:
        queries: (segments + 1,) int32, where each begins, and the last one's end.
        keys: the same of the keys.
        longest: tokens of the longest segment, or somewhat more.
        gathering: how keys are gathered; None if they stay as they lie.
        windows: list to which a test appends the sliding window that each layer asks for.
    """

    queries: Tensor
    keys: Tensor
    longest: int
    gathering: Gathering | None
    windows: list[int | None] | None = None


def plan_of(token_rows: TokenRows, device: torch.device) -> Plan:
    """The plan of token rows, made once per forward for all layers."""
    segments = segments_of(token_rows)
    longest = max(SHORTEST, 1 << int(segments.keys.max() - 1).bit_length())
    gathering = None
    if len(segments.order) > token_rows.ids.size:
        parts = (segments.order, *places_of(segments.order, token_rows.ids.size))
        gathering = Gathering(*(to_device(part, device) for part in parts))
    return Plan(_ends(segments.queries, device), _ends(segments.keys, device), longest, gathering)


def _ends(lengths: Ids, device: torch.device) -> Tensor:
    return to_device(np.cumsum(np.concatenate([[0], lengths])).astype(np.int32), device)


def mark_dynamic(plan: Plan) -> None:
    """Mark the numbers of segments and keys as dynamic for torch.compile: they differ in every forward."""
    counted = [plan.queries, plan.keys] + ([plan.gathering.order] if plan.gathering is not None else [])
    for tensor in counted:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


class _Gather(torch.autograd.Function):
    """Rows by number. Gradients are gathered too, as adding to a row that occurs twice would serialize."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor, places: Tensor, there: Tensor) -> Tensor:
        ctx.save_for_backward(places, there)
        return values.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        places, there = ctx.saved_tensors
        total = upstream.index_select(0, places[0])
        for place, found in zip(places[1:], there[1:], strict=True):
            total = total + upstream.index_select(0, place) * found[:, None, None]
        return total, None, None, None


def attend(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None = None, window: int | None = None
) -> Tensor:
    """Queries (tokens, heads, width), keys and values (tokens, as many heads or fewer, width) -> like the queries.

    ``window``: positions that a query sees back, its own counted.
    """
    if plan.gathering is not None:
        key, value = (_Gather.apply(part, *plan.gathering) for part in (key, value))  # type: ignore[no-untyped-call]
    if query.device.type != "cuda":
        return reference(query, key, value, plan, scale, window)
    back = -1 if window is None else window - 1
    found = varlen_attn(
        query, key, value, plan.queries, plan.keys, plan.longest, plan.longest, scale=scale, window_size=(back, 0),
        **GROUPS,
    )  # fmt: skip
    assert isinstance(found, Tensor)  # as no other output was asked for
    return found


def reference(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None = None, window: int | None = None
) -> Tensor:
    """The same result by plain SDPA with a mask of all pairs, where there is no kernel."""
    of_query, before_query = _places_within(plan.queries, len(query))
    of_key, before_key = _places_within(plan.keys, len(key))
    more = plan.keys.diff() - plan.queries.diff()
    back = (before_query + more[of_query])[:, None] - before_key
    seen = (of_query[:, None] == of_key) & (back >= 0)
    if window is not None:
        seen &= back < window
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    found = functional.scaled_dot_product_attention(query, key, value, seen[None, None], scale=scale, enable_gqa=True)
    return found[0].transpose(0, 1)


def _places_within(ends: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The segment of each token, and the token's position in it."""
    index = torch.arange(tokens, device=ends.device)
    segment = torch.bucketize(index, ends[1:].long(), right=True)
    return segment, index - ends[segment]


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None, segments: Plan | None = None,
    **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """``attend`` as transformers calls attention: (1, heads, tokens, width) of each -> (1, tokens, heads, width).

    Raises ``ValueError`` if a layer asks for another kind of attention.
    """
    asked = [name for name in BEYOND if others.get(name) is not None] + (["dropout"] if dropout else [])
    if asked:
        raise ValueError(f"its layers ask for {asked[0]}")
    if segments is None:
        raise ValueError("its layers do not pass on the keyword arguments of attention")
    if segments.windows is not None:
        segments.windows.append(sliding_window)
    dtype = compute_dtype(value)  # autocast does not reach the kernel
    query, key, value = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    return attend(query, key, value, segments, scaling, sliding_window)[None], None


AttentionInterface.register(VARLEN, varlen_attention)
