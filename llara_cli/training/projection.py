"""A linear vocabulary projection with a bag-of-tokens loss on its logits, whose gradients are taken as they are made.

A chunk of rows is projected, turned into losses and at once into gradients, and forgotten: memory is bounded by the
chunk, and backward computes no logits a second time. On a CPU the chunk is projected in slices of the vocabulary, and
each is turned into shares while it is in the cache; the slices' log-sums then tell what the shares are of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llara_cli.model.products import add_outer, product, zeros_to_add_to
from llara_cli.training.targets import Targets

LOGITS_BYTES = 64 * 2**20
"""Memory that one chunk of float32 logits may take."""
SLICE_BYTES = 16 * 2**20
"""Memory that a CPU's cache has for float32 logits of some of the vocabulary, and for gradients of its weights."""
ALIGNED = 64
"""Of how many tokens a slice is a multiple."""


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
            self._sums[name] = zeros_to_add_to(weight, wide(weight))
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


def wide(tensor: Tensor) -> torch.dtype:
    """Its dtype, or float32 where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def chunks(head: nn.Module, hidden: Tensor) -> list[slice]:
    """Rows of ``hidden`` (rows, slots, dim) in chunks whose logits take ``LOGITS_BYTES``."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    step = max(1, LOGITS_BYTES // (4 * hidden.shape[1] * weight.shape[0]))
    return [slice(at, min(at + step, len(hidden))) for at in range(0, len(hidden), step)]


def slices(chunk: Tensor, vocabulary: int) -> list[slice]:
    """The vocabulary in slices, for hidden states (rows, slots, dim); whole where it is not a CPU that computes."""
    rows, dim = chunk.shape[0] * chunk.shape[1], chunk.shape[2]
    most = SLICE_BYTES // (4 * max(rows, dim)) // ALIGNED * ALIGNED if chunk.device.type == "cpu" else vocabulary
    step = max(most, ALIGNED)
    return [slice(at, min(at + step, vocabulary)) for at in range(0, vocabulary, step)]


def losses_and_gradients(
    head: nn.Linear, hidden: Tensor, targets: Targets, weights: Tensor, gathered: HeadGradients | None = None
) -> tuple[Tensor, Tensor]:
    """``bag_of_tokens_loss`` of the element-wise max over slots of the logits of hidden states (rows, slots, dim).

    Returns:
        The sum of losses times ``weights`` (rows,), to go backward from; the losses (rows,), detached.
    """
    apply: Any = _GradientsAtOnce.apply
    total, each = apply(
        targets, chunks(head, hidden), weights, gathered or HeadGradients(), hidden, head.weight, head.bias
    )
    return total, each


class _GradientsAtOnce(torch.autograd.Function):
    """Forward takes each chunk's gradients while its logits are there."""

    @staticmethod
    def forward(
        ctx: Any, targets: Targets, parts: Sequence[slice], weights: Tensor, gathered: HeadGradients, hidden: Tensor,
        weight: Tensor, bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.gathered, ctx.of_hidden, ctx.dtype = gathered, torch.zeros_like(hidden), weight.dtype
        sums = [
            gathered.sum_of(name, given) if given is not None and given.requires_grad else None
            for name, given in (("weight", weight), ("bias", bias))
        ]

        def add_up(part: slice) -> Tensor:
            """Losses of a part, whose gradients are added up; its logits are let go before the next ones are made."""
            chunk, wanted = hidden[part], targets.part(part, hidden.device)
            made = [_Shares(chunk, weight, bias, columns, wanted) for columns in slices(chunk, len(weight))]
            log_sum = torch.stack([shares.log_sum for shares in made]).logsumexp(dim=0)
            if ctx.needs_input_grad[4]:
                for shares in made:
                    shares.add_gradients(weights[part], log_sum, ctx.of_hidden[part], sums)
            return log_sum - torch.stack([shares.wanted for shares in made]).sum(dim=0)

        found = torch.cat([add_up(part) for part in parts])
        ctx.mark_non_differentiable(found)
        return (found * weights).sum(), found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gathered: HeadGradients = ctx.gathered
        of_head = [gathered.take(name, upstream, ctx.dtype) for name in ("weight", "bias")]
        gathered.taken()
        return (None, None, None, None, ctx.of_hidden.mul_(upstream.to(ctx.of_hidden.dtype)), *of_head)


class _Shares:
    """The softmax of a chunk's logits within a slice of the vocabulary.

    Attributes:
        log_sum: (rows,) the log of the slice's sum of exponentials.
        wanted: (rows,) of the targets' mean logit what lies in the slice.
    """

    def __init__(
        self, chunk: Tensor, weight: Tensor, bias: Tensor | None, columns: slice, targets: tuple[Tensor, ...]
    ) -> None:
        self._chunk, self._weight, self._columns = chunk, weight[columns], columns
        linear = functional.linear if torch.is_autocast_enabled(chunk.device.type) else product
        self._logits = linear(chunk, self._weight, None if bias is None else bias[columns])
        pooled, self._slot = self._pooled()
        values = pooled.to(wide(pooled))
        ids, self._owner, self._counts = targets
        here = ids - columns.start
        self._inside = ((here >= 0) & (here < values.shape[1])).to(values.dtype)
        self._place = here.clamp(0, values.shape[1] - 1)
        picked = values[self._owner, self._place] * self._inside / self._counts[self._owner]
        highest = values.amax(dim=-1)
        self.wanted = torch.zeros_like(highest).index_add(0, self._owner, picked)
        self._values = torch.softmax(values, dim=-1, out=values)
        self.log_sum = highest - self._values.amax(dim=-1).log()  # the largest share is no less than 1 / the slice

    def _pooled(self) -> tuple[Tensor, Tensor | None]:
        """(rows, width), and the slot that each is of; None where there is but one."""
        if self._logits.shape[1] == 1:
            return self._logits[:, 0], None
        pooled, slot = self._logits.max(dim=1)
        return pooled, slot

    def add_gradients(self, weights: Tensor, log_sum: Tensor, of_chunk: Tensor, sums: Sequence[Tensor | None]) -> None:
        """Add those of the losses times ``weights`` (rows,), ``log_sum`` (rows,) being over the whole vocabulary."""
        at_pooled = self._values.mul_(((self.log_sum - log_sum).exp() * weights)[:, None])
        wanted = (weights / self._counts)[self._owner] * self._inside
        at_pooled.index_put_((self._owner, self._place), -wanted.to(at_pooled.dtype), accumulate=True)
        at_pooled = at_pooled.to(self._logits.dtype)
        if self._slot is None:
            flat = at_pooled
        else:
            flat = self._logits.zero_().scatter_(1, self._slot[:, None], at_pooled[:, None]).flatten(0, -2)
        of_chunk += product(flat, self._weight.to(flat.dtype).T).view_as(of_chunk)
        of_weight, of_bias = sums
        if of_weight is not None:
            add_outer(of_weight[self._columns], flat, self._chunk.flatten(0, -2))
        if of_bias is not None:
            of_bias[self._columns] += flat.sum(dim=0)
