"""The losses of EBAE, EBAR and the recipe's causal LM, from hidden states and the LM head.

Logits (tokens, vocabulary) are computed in chunks, never as one tensor: see ``projection.py``.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llara_cli.cpu import wide
from llara_cli.model.logits import PLAIN, Logits
from llara_cli.training.projection import HeadGradients, chunks, losses_and_gradients
from llara_cli.training.targets import NextTokens, Targets, Wanted, check_targets


def bag_of_tokens_loss(logits: Tensor, targets: Wanted, part: slice | None = None) -> Tensor:
    """``-1/|X| sum_{x in X} log softmax(W e)_x`` for each embedding (eq. 2 and 3), in float32 at least.

    Args:
        logits: (embeddings, vocabulary), W e after the recipe's pooling over slots.
        targets: X of each embedding, not empty.
        part: which of the targets the logits belong to; by default all.

    Returns:
        (embeddings,) losses.
    """
    ids, owner, counts = targets.part(part or slice(0, len(logits)), logits.device)
    values = logits.to(wide(logits))
    picked = values[owner, ids] / counts[owner]
    return values.logsumexp(dim=-1) - torch.zeros_like(values[:, 0]).index_add(0, owner, picked)


def pretext_losses(
    head: nn.Module,
    slots: Tensor,
    targets: Targets,
    weights: Tensor,
    *,
    pool_slots: bool,
    gathered: HeadGradients | None = None,
    logits: Logits = PLAIN,
) -> tuple[Tensor, Tensor]:
    """EBAE or EBAR of embeddings, from their slots' hidden states (embeddings, slots, dim).

    ``pool_slots``: element-wise max over the logits of all slots (``released``), else the last slot's (``paper``).
    ``logits``: what the model does to logits besides multiplying by ``head``.

    Returns:
        The sum of losses times the constants ``weights`` (embeddings,), to go backward from; the losses (embeddings,),
        detached.

    Raises:
        ValueError, IndexError: as ``check_targets`` does.
    """
    return _losses(head, slots if pool_slots else slots[:, -1:], targets, weights, gathered, logits)


def language_model_loss(
    head: nn.Module, hidden: Tensor, next_ids: Tensor, weight: float, gathered: HeadGradients | None = None, *,
    logits: Logits = PLAIN,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Next-token cross-entropy of positions: hidden (tokens, dim), next_ids (tokens,).

    On CUDA by Liger's fused kernel, if it is installed and the logits are plain products.
    ``logits``: what the model does to logits besides multiplying by ``head``.

    Returns:
        The summed loss times ``weight``, to go backward from; the summed loss, detached.

    Raises:
        ValueError, IndexError: as ``check_targets`` does.
    """
    if hidden.is_cuda and type(head) is nn.Linear and logits == PLAIN and find_spec("liger_kernel") is not None:
        check_targets(NextTokens(next_ids), len(hidden), len(head.weight))
        summed = _liger(hidden, head, next_ids)
        return summed * weight, summed.detach()
    weights = torch.full((len(hidden),), weight, device=hidden.device, dtype=wide(hidden))
    total, each = _losses(head, hidden[:, None], NextTokens(next_ids), weights, gathered, logits)
    return total, each.sum()


def _liger(hidden: Tensor, head: nn.Linear, next_ids: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(hidden, head.weight, next_ids, head.bias, reduction="sum")
    return loss


def _losses(
    head: nn.Module,
    hidden: Tensor,
    targets: Wanted,
    weights: Tensor,
    gathered: HeadGradients | None,
    logits: Logits,
) -> tuple[Tensor, Tensor]:
    """``losses_and_gradients`` for any head.

    A wrapped head is differentiated by autograd, as its weights may come from anywhere (peft ties rows of new tokens).
    """
    weight = head.weight  # read once: a wrapper may compute it each time
    assert isinstance(weight, Tensor)
    check_targets(targets, len(hidden), len(weight))
    hidden = logits.head_input(hidden)
    if type(head) is nn.Linear:
        return losses_and_gradients(head, hidden, targets, weights, gathered, logits.scale, logits.cap)

    def losses(chunk: Tensor, part: slice) -> Tensor:
        if chunk.shape[1] > 1:
            return bag_of_tokens_loss(logits.of(head(chunk)).max(dim=1).values, targets, part)
        values = logits.of(head(chunk[:, 0]))
        if isinstance(targets, NextTokens):
            return functional.cross_entropy(values.to(wide(values)), targets.next_ids[part], reduction="none")
        return bag_of_tokens_loss(values, targets, part)

    run = partial(checkpoint, losses, use_reentrant=False)
    each = torch.cat([run(hidden[part], part) for part in chunks(hidden, len(weight))])
    return (each * weights).sum(), each.detach()
