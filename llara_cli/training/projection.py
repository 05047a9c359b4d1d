"""Bag-of-tokens losses through the LM head in chunks, with gradients computed in the forward.

A chunk of rows is turned into logits, losses and gradients, and freed: memory is bounded by the chunk, and backward
need not recompute logits. On a CPU the logits of a chunk are computed in slices of the vocabulary, each turned into
softmax shares while it is in the cache; the slices' log-sums then scale these to the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llara_cli.cpu import add_matmul_transposed, gradient_dtype, linear, wide, zeros_for_sum
from llara_cli.training.targets import Predicted, Wanted

LOGITS_BYTES, GPU_LOGITS_BYTES = 64 * 2**20, 2**30
"""Most bytes of a chunk's float32 logits: on a CPU, and on a GPU, where few large matmuls are faster."""
SLICE_BYTES = 16 * 2**20
"""Most bytes on a CPU of a slice's float32 logits, and of its weights' gradients."""
ALIGNED = 64
"""The width of a slice is a multiple of this many tokens."""


class HeadGradients:
    """The LM head's gradients, summed over the forwards of an optimizer batch and passed on with the last.

    They are as large as the head: creating, scaling and adding them in every forward would take longer than the losses.
    The sum is scaled once, by the upstream gradient of the last loss, so all losses of a batch must have the same
    upstream gradient. ``last``: whether this forward is the process' last of the batch.
    """

    def __init__(self) -> None:
        self.last = True
        self.sums: dict[str, Tensor] = {}
        self._waiting = False  # whether the sums hold gradients not passed on yet

    def start(self) -> None:
        """Begin a batch, dropping the sums of the one before."""
        self._waiting = False

    def sum_of(self, name: str, weight: Tensor) -> Tensor:
        """The tensor that sums the gradient of ``weight``."""
        if not self._waiting:
            for total in self.sums.values():
                total.zero_()
        self._waiting = True
        if name not in self.sums:  # in fp32 at least: in bf16 small additions would be lost
            self.sums[name] = zeros_for_sum(weight, wide(weight))
        return self.sums[name]

    def take(self, name: str, upstream: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The sum times ``upstream``, once, in ``dtype``; None before the last forward."""
        if not self.last or not self._waiting or name not in self.sums:
            return None
        total = self.sums[name]
        taken = torch.empty(total.shape, dtype=dtype, device=total.device)  # contiguous, whatever the layout of the sum
        return torch.mul(total, upstream.to(total.dtype), out=taken)

    def taken(self) -> None:
        """Forget the sums, which have been passed on."""
        self._waiting = self._waiting and not self.last


def chunk_rows(slots: int, vocabulary: int, device: torch.device) -> int:
    """Rows per chunk of logits on ``device``, for rows of ``slots`` slots."""
    most = LOGITS_BYTES if device.type == "cpu" else GPU_LOGITS_BYTES
    return max(1, most // (4 * slots * vocabulary))


def chunks(hidden: Tensor, vocabulary: int) -> list[slice]:
    """Rows of ``hidden`` (rows, slots, dim) in chunks of ``chunk_rows``."""
    step = chunk_rows(hidden.shape[1], vocabulary, hidden.device)
    return [slice(at, min(at + step, len(hidden))) for at in range(0, max(len(hidden), 1), step)]


def slices(chunk: Tensor, vocabulary: int) -> list[slice]:
    """The vocabulary in slices of equal width, for hidden states (rows, slots, dim); in one piece except on a CPU."""
    if chunk.device.type != "cpu":
        return [slice(0, vocabulary)]
    rows, dim = chunk.shape[0] * chunk.shape[1], chunk.shape[2]
    most = max(SLICE_BYTES // (4 * max(rows, dim)), 1)
    step = -(-vocabulary // -(-vocabulary // most))
    step += -step % ALIGNED
    return [slice(at, min(at + step, vocabulary)) for at in range(0, vocabulary, step)]


def losses_and_gradients(
    head: nn.Linear, hidden: Tensor, targets: Wanted, weights: Tensor, gathered: HeadGradients | None = None,
    scale: float = 1.0, cap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``bag_of_tokens_loss`` of the element-wise max over slots of the logits of hidden states (rows, slots, dim).

    The logits are the head's products times ``scale``, softly limited to ``cap`` where there is one: see ``Logits``.
    Gradients are computed in the forward and passed on in backward, which may run once; the head's are passed on with
    the batch's last forward.

    Returns:
        The sum of losses times the constants ``weights`` (rows,), to go backward from; the losses (rows,), detached.

    Raises:
        ValueError: ``weights`` need a gradient.
    """
    if weights.requires_grad:
        raise ValueError("the weights of losses are constants")
    if scale != 1:  # applied to the smaller factor; autograd handles its gradient
        hidden = hidden * scale
    apply: Any = _GradientsAtOnce.apply
    total, each = apply(
        targets, torch.is_grad_enabled(), weights, gathered or HeadGradients(), hidden, head.weight, head.bias,
        chunks(hidden, len(head.weight)), scale, cap,
    )  # fmt: skip
    return total, each


class _GradientsAtOnce(torch.autograd.Function):
    """Computes each chunk's gradients in forward, while its logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any, targets: Wanted, training: bool, weights: Tensor, gathered: HeadGradients, hidden: Tensor,
        weight: Tensor, bias: Tensor | None, parts: Sequence[slice], scale: float, cap: float | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.gathered, ctx.dtype = gathered, gradient_dtype(weight)
        needed = [training and need for need in ctx.needs_input_grad[4:7]]
        ctx.of_hidden = torch.empty_like(hidden) if needed[0] else None
        sums = [
            gathered.sum_of(name, given) if given is not None and need else None
            for name, given, need in zip(("weight", "bias"), (weight, bias), needed[1:], strict=True)
        ]

        def add_up(part: slice) -> Tensor:
            """Losses of a part; adds its gradients, and frees its logits."""
            chunk, predicted = hidden[part], targets.part(part, hidden.device)
            shares_of_slices = [
                _Shares(chunk, weight, bias, columns, predicted, scale, cap) for columns in slices(chunk, len(weight))
            ]
            log_sum = torch.stack([shares.log_sum for shares in shares_of_slices]).logsumexp(dim=0)
            if any(needed):
                of_chunk = torch.zeros(chunk.shape, dtype=wide(chunk), device=chunk.device) if needed[0] else None
                for shares in shares_of_slices:
                    shares.add_gradients(weights[part], log_sum, of_chunk, sums)
                if of_chunk is not None:
                    ctx.of_hidden[part] = of_chunk
            return log_sum - torch.stack([shares.wanted for shares in shares_of_slices]).sum(dim=0)

        losses = torch.cat([add_up(part) for part in parts])
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gathered: HeadGradients | None = ctx.gathered
        if gathered is None:
            raise RuntimeError("backward through a loss whose gradients were passed on already")
        of_head = [gathered.take(name, upstream, ctx.dtype) for name in ("weight", "bias")]
        gathered.taken()
        of_hidden = None if ctx.of_hidden is None else _times(ctx.of_hidden, upstream)
        ctx.gathered = ctx.of_hidden = None
        return (None, None, None, None, of_hidden, *of_head, None, None, None)


def _times(gradient: Tensor, upstream: Tensor) -> Tensor:
    """Multiply in place, in the wider of both dtypes: the upstream gradient may overflow fp16."""
    return torch.mul(gradient, upstream.reshape([1] * gradient.dim()), out=gradient)


class _Shares:
    """The softmax of a chunk's logits within a slice of the vocabulary.

    The chunk is scaled already, the bias is not; ``cap`` soft-caps the logits, as in ``Logits``.

    Attributes:
        log_sum: (rows,) the log of the slice's sum of exponentials.
        wanted: (rows,) the slice's part of the targets' mean logit.
    """

    def __init__(
        self, chunk: Tensor, weight: Tensor, bias: Tensor | None, columns: slice, predicted: Predicted, scale: float,
        cap: float | None,
    ) -> None:  # fmt: skip
        self._chunk, self._columns, self._scale = chunk, columns, scale
        self._weight = _as_multiplied(weight[columns])
        if bias is not None:
            bias = bias[columns] if scale == 1 else bias[columns] * scale
        logits = linear(chunk, self._weight, bias)
        self._dtype = logits.dtype
        self._logits: Tensor | None = None
        self._slot: Tensor | None = None
        pooled = logits[:, 0]
        if chunk.shape[1] > 1:
            self._logits = logits  # gradients reuse their memory
            pooled, self._slot = logits.max(dim=1)
        self._values = pooled.to(wide(pooled))
        self._slope: Tensor | None = None
        if cap is not None:  # monotonic, so it may follow the max
            bent = self._values.div_(cap).tanh_()
            self._slope = 1 - bent * bent
            bent.mul_(cap)
        self._whole = len(weight) == self._values.shape[1]
        self._place, self._owner, self._counts = self._inside(predicted)
        self._normalize()

    def _inside(self, predicted: Predicted) -> Predicted:
        """The targets in the slice, counted from its start."""
        ids, owner, counts = predicted
        if self._whole:  # no search, which would wait for the GPU
            return predicted
        inside = ((ids >= self._columns.start) & (ids < self._columns.stop)).nonzero()[:, 0]
        return ids[inside] - self._columns.start, owner[inside], counts

    def _normalize(self) -> None:
        """Turn logits into softmax shares, in place."""
        values, highest = self._values, self._values.amax(dim=-1)
        picked = values[self._owner, self._place] / self._counts[self._owner]
        self.wanted = torch.zeros_like(highest).index_add(0, self._owner, picked)
        torch.softmax(values, dim=-1, out=values)
        self.log_sum = highest - values.amax(dim=-1).log()  # the largest share is no less than 1 / the slice
        if not self._whole and bool((nothing := highest.isneginf()).any()):  # other slices may have targets
            values.masked_fill_(nothing[:, None], 0)
            self.log_sum.masked_fill_(nothing, -torch.inf)

    def add_gradients(
        self, weights: Tensor, log_sum: Tensor, of_chunk: Tensor | None, sums: Sequence[Tensor | None]
    ) -> None:
        """Add the gradients of the losses times ``weights`` (rows,); ``log_sum`` (rows,) is over the whole vocabulary.

        They are added to ``of_chunk`` (rows, slots, dim) and to the ``sums`` of the head's weight and bias.
        """
        at_pooled = self._values.mul_(((self.log_sum - log_sum).exp() * weights)[:, None])
        of_targets = (-weights.to(at_pooled.dtype) / self._counts)[self._owner]
        at_pooled.index_put_((self._owner, self._place), of_targets, accumulate=True)
        if self._slope is not None:
            at_pooled.mul_(self._slope)
        flat = at_pooled.to(self._dtype)
        if self._logits is not None and self._slot is not None:
            flat = self._logits.zero_().scatter_(1, self._slot[:, None], flat[:, None]).flatten(0, -2)
        of_weight, of_bias = sums
        if of_chunk is not None:
            of_chunk += linear(flat, self._weight.T).view_as(of_chunk)
        if of_weight is not None:
            add_matmul_transposed(of_weight[self._columns], flat, self._chunk.flatten(0, -2))
        if of_bias is not None:
            of_bias[self._columns] += flat.sum(dim=0) if self._scale == 1 else flat.sum(dim=0) * self._scale


def _as_multiplied(weight: Tensor) -> Tensor:
    """A weight in the dtype that autocast would cast it to, so that it is cast once for all its products."""
    kind = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return weight.to(torch.get_autocast_dtype(kind))
    return weight
