"""Contrastive fine-tuning: InfoNCE over cosine / temperature (arXiv 2312.15503, section 4.1; RepLLaMA's set-up).

A batch of more tokens than one forward may have is done as GradCache does it: embed everything without gradient, take
the loss' gradient at the embeddings, then embed each micro-batch again and push its part of that gradient through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llara_cli.model.backbone import Backbone
from llara_cli.model.batching import micro_batches
from llara_cli.model.encoder import Sequencer, pool
from llara_cli.model.layout import Layout, lay_out
from llara_cli.model.recipe import Recipe
from llara_cli.training.engine import Engine
from llara_cli.training.objective import Terms


@dataclass(frozen=True)
class Group:
    """A query with its passages, the positive first.

    ``identities``: what each passage is known by (id and text); ``own``: those of all the query's positives.
    """

    query: str
    passages: Sequence[str]
    identities: Sequence[frozenset[str]]
    own: frozenset[str]


def contrast_mask(groups: Sequence[Group], *, in_batch: bool, mask_false_negatives: bool) -> Tensor:
    """(queries, passages) True where a passage takes part in a query's softmax.

    The query's own positive always does. Other rows' passages only ``in_batch``; with ``mask_false_negatives`` no
    passage that has the id or text of one of the query's positives.
    """
    identities = [identity for group in groups for identity in group.identities]
    sizes = [len(group.passages) for group in groups]
    mask = torch.ones(len(groups), len(identities), dtype=torch.bool)
    start = 0
    for row, group in enumerate(groups):
        if mask_false_negatives:
            mask[row] = torch.tensor([not (identity & group.own) for identity in identities])
        if not in_batch:
            mask[row, :start] = False
            mask[row, start + sizes[row] :] = False
        mask[row, start] = True
        start += sizes[row]
    return mask


def info_nce(queries: Tensor, passages: Tensor, positives: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """``-log exp(s+ / t) / sum exp(s / t)``, mean over queries.

    Args:
        queries: (queries, dim), L2-normalised. passages: (passages, dim), L2-normalised.
        positives: (queries,) column of each query's positive. mask: (queries, passages), see ``contrast_mask``.
    """
    scores = queries @ passages.T / temperature
    return functional.cross_entropy(scores.masked_fill(~mask, float("-inf")), positives)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make dropout the same in both passes over a micro-batch, whatever lies between them."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass
class ContrastiveObjective:
    """InfoNCE over one optimiser batch; ``chunk`` bounds the texts of a micro-batch, ``budget`` its tokens."""

    backbone: Backbone
    recipe: Recipe
    sequencer: Sequencer
    budget: int
    temperature: float = 0.01
    in_batch: bool = True
    mask_false_negatives: bool = True
    chunk: int | None = None
    normalise: bool = True
    seed: int = 0

    @property
    def execution(self) -> dict[str, Any]:
        """Nothing that could have been computed another way."""
        return {}

    def backward(self, groups: Sequence[Group], engine: Engine | None = None) -> Terms:
        """Accumulate the gradient of the batch's mean loss."""
        engine = engine or Engine()
        batch = self._sequences(groups)
        mask = contrast_mask(groups, in_batch=self.in_batch, mask_false_negatives=self.mask_false_negatives)
        if self.chunk is None and batch.computed <= self.budget:
            embeddings = torch.cat([self._seeded_embed(batch, part) for part in range(len(batch.parts))])
            loss = self._loss(embeddings[batch.order.argsort()], groups, mask)
            (loss * engine.scale).backward()
        else:
            loss = self._cached_backward(batch, groups, mask, engine)
        self.seed += len(batch.parts)
        return Terms(float(loss.detach()), texts=len(batch.order), tokens=batch.tokens)

    def _cached_backward(self, batch: _Batch, groups: Sequence[Group], mask: Tensor, engine: Engine) -> Tensor:
        with torch.no_grad():
            cached = torch.cat([self._seeded_embed(batch, part) for part in range(len(batch.parts))])
        cached.requires_grad_()
        loss = self._loss(cached[batch.order.argsort()], groups, mask)
        (loss * engine.scale).backward()
        assert cached.grad is not None
        gradients = cached.grad.split([len(part) for part in batch.parts])
        for part, gradient in enumerate(gradients):
            self._seeded_embed(batch, part).backward(gradient)
        return loss

    def _seeded_embed(self, batch: _Batch, part: int) -> Tensor:
        with _seeded(self.seed + part):
            return self._embed(batch.layouts[part])

    def _embed(self, layout: Layout) -> Tensor:
        return pool(self.backbone.slots(layout), self.recipe, normalise=self.normalise)

    def _loss(self, embeddings: Tensor, groups: Sequence[Group], mask: Tensor) -> Tensor:
        sizes = torch.tensor([len(group.passages) for group in groups])
        positives = (sizes.cumsum(0) - sizes).to(embeddings.device)
        queries, passages = embeddings[: len(groups)], embeddings[len(groups) :]
        return info_nce(queries, passages, positives, mask.to(embeddings.device), self.temperature)

    def _sequences(self, groups: Sequence[Group]) -> _Batch:
        queries = self.sequencer.trees([group.query for group in groups], "query")
        passages = self.sequencer.trees([text for group in groups for text in group.passages], "passage")
        trees = queries.trees + passages.trees
        parts = micro_batches([len(tree) for tree in trees], self.budget)
        if self.chunk is not None:
            parts = [part[at : at + self.chunk] for part in parts for at in range(0, len(part), self.chunk)]
        order = torch.tensor([number for part in parts for number in part])
        layouts = [lay_out([trees[number] for number in part]) for part in parts]
        return _Batch(
            parts, layouts, order, queries.tokens + passages.tokens, sum(layout.ids.size for layout in layouts)
        )


@dataclass(frozen=True)
class _Batch:
    """Queries then passages, in micro-batches.

    ``order``: which text each embedded row belongs to; ``tokens`` of the texts, ``computed`` with prompts and padding.
    """

    parts: Sequence[Sequence[int]]
    layouts: Sequence[Layout]
    order: Tensor
    tokens: int
    computed: int
