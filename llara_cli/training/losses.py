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

from llara_cli.model.products import add_outer, product, suits_onednn, zeros_to_add_to

LOGITS_BYTES = 64 * 2**20
"""Memory that one chunk of float32 logits may take."""
LEAST_DIM = 256
"""Width of a hidden state from which oneDNN's gain is worth fresh memory for the logits: it grows with the width."""


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
    wide = logits.to(_wide(logits))
    picked = wide[owner, ids] / counts[owner]
    return wide.logsumexp(dim=-1) - torch.zeros_like(wide[:, 0]).index_add(0, owner, picked)


class HeadGradients:
    """The projection's gradients, gathered over the forwards of an optimiser batch and handed over with the last.

    They are as large as the vocabulary: to make, scale and add them once a forward would take longer than the losses.
    ``last``: the forward at hand is this process' last of the batch.
    """

    def __init__(self) -> None:
        self.last = True
        self._sums: dict[str, Tensor] = {}
        self._waiting = False

    def start(self) -> None:
        """Begin a batch."""
        self._waiting = False
        for total in self._sums.values():
            total.zero_()

    def sum_of(self, name: str, weight: Tensor) -> Tensor:
        """Where the gradient of ``weight`` is summed up."""
        self._waiting = True
        if name not in self._sums:  # in fp32 at least: in bf16 the many small additions would be lost
            self._sums[name] = zeros_to_add_to(weight, _wide(weight))
        return self._sums[name]

    def take(self, name: str, upstream: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What was summed, times ``upstream``, once, in ``dtype``; None before the last forward."""
        if not self.last or not self._waiting or name not in self._sums:
            return None
        total = self._sums[name] * upstream.to(self._sums[name].dtype)
        return total.to(dtype)

    def taken(self) -> None:
        """All that was summed is handed over."""
        self._waiting = self._waiting and not self.last


def pretext_losses(
    head: nn.Module,
    slots: Tensor,
    targets: Targets,
    weights: Tensor,
    *,
    pool_slots: bool,
    gathered: HeadGradients | None = None,
) -> tuple[Tensor, Tensor]:
    """EBAE or EBAR of embeddings, from their slots' hidden states (embeddings, slots, dim).

    ``pool_slots``: element-wise max over the logits of all slots (``released``), else the last slot's (``paper``).

    Returns:
        The sum of losses times ``weights`` (embeddings,), to go backward from; the losses (embeddings,), detached.
    """

    def losses(logits: Tensor, part: slice) -> Tensor:
        return bag_of_tokens_loss(logits.amax(dim=1), targets, part)

    def gradient(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        ids, owner, counts = targets.part(part, logits.device)
        pooled, slot = logits.max(dim=1)
        log_share = pooled.to(_wide(logits)).log_softmax(dim=-1)
        each = torch.zeros_like(log_share[:, 0]).index_add(0, owner, -log_share[owner, ids] / counts[owner])
        at_pooled = log_share.exp_()
        at_pooled.index_put_((owner, ids), (-1.0 / counts.to(at_pooled.dtype))[owner], accumulate=True)
        at_pooled *= weights[part, None]
        return each, logits.zero_().scatter_(1, slot[:, None], at_pooled[:, None].to(logits.dtype))

    used = slots if pool_slots else slots[:, -1:]
    if type(head) is nn.Linear:
        return _at_once(gradient, head, used, weights, gathered)
    return _by_autograd(losses, head, used, weights)


def language_model_loss(
    head: nn.Module, hidden: Tensor, next_ids: Tensor, weight: float, gathered: HeadGradients | None = None
) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy of positions: hidden (tokens, dim), next_ids (tokens,).

    On CUDA through Liger's fused kernel where it is installed.

    Returns:
        The summed loss times ``weight``, to go backward from; the summed loss, detached.
    """
    if hidden.is_cuda and type(head) is nn.Linear and find_spec("liger_kernel") is not None:
        summed = _liger(hidden, head, next_ids)
        return summed * weight, summed.detach()

    def losses(logits: Tensor, part: slice) -> Tensor:
        return functional.cross_entropy(logits.to(_wide(logits)), next_ids[part], reduction="none")

    def gradient(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        rows, wide = torch.arange(len(logits), device=logits.device), logits.to(_wide(logits))
        highest, at = wide.max(dim=-1)
        wanted = wide[rows, next_ids[part]]
        share = torch.softmax(wide, dim=-1, out=wide)
        each = highest - share[rows, at].log() - wanted  # the largest share is no less than 1 / vocabulary
        share[rows, next_ids[part]] -= 1
        return each, share.mul_(weight)

    weights = torch.full((len(hidden),), weight, device=hidden.device, dtype=_wide(hidden))
    if type(head) is nn.Linear:
        total, each = _at_once(gradient, head, hidden, weights, gathered)
    else:
        total, each = _by_autograd(losses, head, hidden, weights)
    return total, each.sum()


def _liger(hidden: Tensor, head: nn.Linear, next_ids: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(hidden, head.weight, next_ids, head.bias, reduction="sum")
    return loss


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


Losses = Callable[[Tensor, slice], Tensor]
"""Losses (rows,) of the logits of a part of the rows."""
Gradient = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""The same losses, and the gradient of their weighted sum at the logits, which it may write in their place."""


def _parts(head: nn.Module, hidden: Tensor) -> list[slice]:
    """Rows of ``hidden`` in chunks whose logits take ``LOGITS_BYTES``."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    step = max(1, LOGITS_BYTES // (4 * hidden[0, ..., 0].numel() * weight.shape[0]))
    return [slice(at, min(at + step, len(hidden))) for at in range(0, len(hidden), step)]


def _by_autograd(losses: Losses, head: nn.Module, hidden: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """For a wrapped head, whose weights may come from anywhere (peft ties the rows of new tokens)."""
    run = partial(checkpoint, lambda chunk, part: losses(head(chunk), part), use_reentrant=False)
    each = torch.cat([run(hidden[part], part) for part in _parts(head, hidden)])
    return (each * weights).sum(), each.detach()


def _at_once(
    gradient: Gradient, head: nn.Linear, hidden: Tensor, weights: Tensor, gathered: HeadGradients | None
) -> tuple[Tensor, Tensor]:
    apply: Any = _GradientsAtOnce.apply
    total, each = apply(
        gradient, _parts(head, hidden), weights, gathered or HeadGradients(), hidden, head.weight, head.bias
    )
    return total, each


class _GradientsAtOnce(torch.autograd.Function):
    """A linear head with a loss on its logits; forward takes each chunk's gradients while its logits are there."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Gradient, parts: Sequence[slice], weights: Tensor, gathered: HeadGradients, hidden: Tensor,
        weight: Tensor, bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.gathered, ctx.of_hidden, ctx.dtype = gathered, torch.empty_like(hidden), weight.dtype
        room = _Room(hidden, weight, bias)

        def add_up(part: slice) -> Tensor:
            """Losses of a part, whose gradients are added up; its logits are let go before the next ones are made."""
            logits = room.logits(hidden[part])
            each, at_logits = gradient(logits, part)
            if ctx.needs_input_grad[4]:
                flat, chunk = at_logits.to(logits.dtype).flatten(0, -2), hidden[part].flatten(0, -2)
                ctx.of_hidden[part] = product(flat, weight.to(flat.dtype).T).view_as(ctx.of_hidden[part])
                if weight.requires_grad:
                    add_outer(gathered.sum_of("weight", weight), flat, chunk)
                if bias is not None and bias.requires_grad:
                    gathered.sum_of("bias", bias).add_(flat.sum(dim=0))
            return each

        losses = torch.cat([add_up(part) for part in parts])
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gathered: HeadGradients = ctx.gathered
        of_head = [gathered.take(name, upstream, ctx.dtype) for name in ("weight", "bias")]
        gathered.taken()
        return (None, None, None, None, ctx.of_hidden.mul_(upstream.to(ctx.of_hidden.dtype)), *of_head)


class _Room:
    """Logits of one chunk after another in the same memory: fresh pages for each would take longer than its losses.

    Not where oneDNN is faster: it cannot write to memory that is there, and from ``LEAST_DIM`` on gains more than the
    pages cost.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self._plain = hidden.dtype == weight.dtype and not torch.is_autocast_enabled(hidden.device.type)
        self._memory: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., vocabulary); those of an earlier call may be overwritten."""
        if not self._plain:
            return functional.linear(hidden, self.weight, self.bias)
        if hidden.shape[-1] >= LEAST_DIM and suits_onednn(hidden, self.weight):
            return product(hidden, self.weight, self.bias)
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self._memory is None or len(self._memory) < len(flat):
            self._memory = flat.new_empty(len(flat), len(self.weight))
        logits = torch.mm(flat, self.weight.T, out=self._memory[: len(flat)])
        if self.bias is not None:
            logits += self.bias
        return logits.view(*hidden.shape[:-1], -1)
