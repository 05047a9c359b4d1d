"""The vocabulary projection's losses, chunk by chunk: no tensor of (tokens, vocabulary) is ever whole.

A chunk's logits are made, turned into losses and at once into gradients, and forgotten. So memory is bounded by the
chunk, and backward computes no logits a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LOGITS_BYTES = 64 * 2**20
"""Memory that one chunk of float32 logits may take."""


class Targets:
    """The targets X of some embeddings, flat: ``ids`` (sum of |X|,), ``starts`` (embeddings + 1,)."""

    def __init__(self, sets: Sequence[Sequence[int] | NDArray[Any]]) -> None:
        self.ids = np.concatenate([np.asarray(ids, np.int64) for ids in sets]) if sets else np.zeros(0, np.int64)
        self.starts = np.concatenate([[0], np.cumsum([len(ids) for ids in sets], dtype=np.int64)])

    def part(self, part: slice, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of the embeddings in ``part``: flat ids, the embedding each belongs to (from 0), |X| of each embedding."""
        starts = self.starts[part.start : part.stop + 1]
        counts = torch.from_numpy(np.diff(starts)).to(device)
        ids = torch.from_numpy(self.ids[starts[0] : starts[-1]]).to(device)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=device), counts, output_size=len(ids))
        return ids, owner, counts


def bag_of_tokens_loss(logits: Tensor, targets: Targets, part: slice | None = None) -> Tensor:
    """``-1/|X| sum_{x in X} log softmax(W e)_x`` for each embedding (eq. 2 and 3), in float32 at least.

    Args:
        logits: (embeddings, vocabulary), W e after the recipe's pooling over slots.
        targets: X of each embedding, not empty.
        part: which of the targets the logits belong to; left out: all.

    Returns:
        (embeddings,) losses.
    """
    ids, owner, counts = targets.part(part or slice(0, len(logits)), logits.device)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = wide[owner, ids] / counts[owner]
    return wide.logsumexp(dim=-1) - torch.zeros_like(wide[:, 0]).index_add(0, owner, picked)


def pretext_losses(
    head: nn.Module, slots: Tensor, targets: Targets, weights: Tensor, *, pool_slots: bool
) -> tuple[Tensor, Tensor]:
    """EBAE or EBAR of embeddings, from their slots' hidden states (embeddings, slots, dim).

    ``pool_slots``: element-wise max over the logits of all slots (``released``), else the last slot's (``paper``).

    Returns:
        The sum of losses times ``weights`` (embeddings,), to go backward from; the losses (embeddings,), detached.
    """

    def losses(logits: Tensor, part: slice) -> Tensor:
        return bag_of_tokens_loss(logits.amax(dim=1), targets, part) * weights[part]

    def gradient(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        ids, owner, counts = targets.part(part, logits.device)
        pooled, slot = logits.max(dim=1)
        log_share = pooled.to(_wide(logits)).log_softmax(dim=-1)
        each = torch.zeros_like(log_share[:, 0]).index_add(0, owner, -log_share[owner, ids] / counts[owner])
        at_pooled = log_share.exp_()
        at_pooled.index_put_((owner, ids), (-1.0 / counts.to(at_pooled.dtype))[owner], accumulate=True)
        at_pooled *= weights[part, None]
        return each * weights[part], torch.zeros_like(logits, dtype=at_pooled.dtype).scatter_(
            1, slot[:, None], at_pooled[:, None]
        )

    total, each = _chunked(losses, gradient, head, slots if pool_slots else slots[:, -1:])
    return total, each / weights


def language_model_loss(head: nn.Module, hidden: Tensor, next_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Summed next-token cross-entropy of positions: hidden (tokens, dim), next_ids (tokens,).

    On CUDA through Liger's fused kernel where it is installed.

    Returns:
        The sum, to go backward from, and the same detached.
    """
    if hidden.is_cuda and type(head) is nn.Linear and find_spec("liger_kernel") is not None:
        summed = _liger(hidden, head, next_ids)
        return summed, summed.detach()

    def losses(logits: Tensor, part: slice) -> Tensor:
        return functional.cross_entropy(logits.to(_wide(logits)), next_ids[part], reduction="none")

    def gradient(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        log_share = logits.to(_wide(logits)).log_softmax(dim=-1)
        place = (torch.arange(len(logits), device=logits.device), next_ids[part])
        each = -log_share[place]
        share = log_share.exp_()
        share[place] -= 1
        return each, share

    total, each = _chunked(losses, gradient, head, hidden)
    return total, each.sum()


def _liger(hidden: Tensor, head: nn.Linear, next_ids: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(hidden, head.weight, next_ids, head.bias, reduction="sum")
    return loss


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


Losses = Callable[[Tensor, slice], Tensor]
"""Losses (rows,) of the logits of a part of the rows."""
Gradient = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""The same losses, and the gradient of their sum at the logits."""


def _chunked(losses: Losses, gradient: Gradient, head: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses of ``hidden``'s rows, to go backward from, and the losses (rows,), detached."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    step = max(1, LOGITS_BYTES // (4 * hidden[0, ..., 0].numel() * weight.shape[0]))
    parts = [slice(at, min(at + step, len(hidden))) for at in range(0, len(hidden), step)]
    if type(head) is nn.Linear:
        total, each = _GradientsAtOnce.apply(gradient, parts, hidden, head.weight, head.bias)  # type: ignore[no-untyped-call]
        return total, each
    # a wrapper may take its weights from anywhere (peft ties the rows of new tokens): autograd finds them by itself
    run = partial(checkpoint, lambda chunk, part: losses(head(chunk), part), use_reentrant=False)
    each = torch.cat([run(hidden[part], part) for part in parts])
    return each.sum(), each.detach()


class _GradientsAtOnce(torch.autograd.Function):
    """A linear head with a loss on its logits; forward takes each chunk's gradients while its logits are there."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Gradient, parts: Sequence[slice], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        of_hidden = torch.empty_like(hidden)
        trains = weight.requires_grad and ctx.needs_input_grad[2]
        of_weight = torch.zeros_like(weight) if trains else None
        of_bias = torch.zeros_like(bias) if trains and bias is not None else None
        found = []
        for part in parts:
            logits = functional.linear(hidden[part], weight, bias)
            each, at_logits = gradient(logits, part)
            found.append(each)
            if ctx.needs_input_grad[2]:
                _push(at_logits.to(logits.dtype).flatten(0, -2), part, hidden, weight, of_hidden, of_weight, of_bias)
        ctx.gradients = (of_hidden, of_weight, of_bias)
        losses = torch.cat(found)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if part is None else part.mul_(upstream.to(part.dtype)) for part in ctx.gradients]
        ctx.gradients = ()
        return (None, None, *scaled)


def _push(
    at_logits: Tensor, part: slice, hidden: Tensor, weight: Tensor, of_hidden: Tensor, of_weight: Tensor | None,
    of_bias: Tensor | None,
) -> None:  # fmt: skip
    """The gradient at a chunk's logits (rows, vocabulary) through the head, into the gradients of all."""
    dtype = at_logits.dtype
    of_hidden[part] = (at_logits @ weight.to(dtype)).view_as(of_hidden[part])
    if of_weight is not None:
        chunk = hidden[part].flatten(0, -2).to(dtype)
        if dtype == of_weight.dtype:
            of_weight.addmm_(at_logits.T, chunk)
        else:
            of_weight += at_logits.T @ chunk
    if of_bias is not None:
        of_bias += at_logits.sum(dim=0)
