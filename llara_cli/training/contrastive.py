"""Contrastive fine-tuning: the embeddings of a batch, split among processes, and the gradients of their loss.

The loss depends on all embeddings of the batch, so every process computes it: each embeds its share of the texts, the
shares are summed into one matrix, and each backpropagates the loss' gradient at its own rows through the model. A share
with more tokens than a forward may have is computed as in GradCache (arXiv 2101.06983): embed everything without
gradients, compute the loss' gradient at the embeddings, then embed each microbatch again and backpropagate its rows of
that gradient. The largest microbatch keeps its graph and is embedded once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llara_cli.model.batching import Batching, Rows, assign_to_ranks, computed_tokens, cut
from llara_cli.model.decoder import Decoder
from llara_cli.model.encoder import Sequencer, pool, text_batching
from llara_cli.model.recipe import Recipe
from llara_cli.model.sequences import TokenRows, Tree, place_some
from llara_cli.model.to_device import to_device
from llara_cli.training.engine import Engine
from llara_cli.training.groups import Group
from llara_cli.training.info_nce import ContrastiveLoss, contrasts
from llara_cli.training.objective import BatchLosses


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make dropout the same in both passes over a microbatch."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Microbatches:
    """The texts of a batch, queries then passages, split into forwards.

    Attributes:
        trees: the texts with their prompts.
        forwards: the rows of each forward, a row being the numbers of its texts.
        multiple: a row's width is rounded up to a multiple of this many tokens.
        tokens: tokens of all texts, without prompts and padding.
    """

    trees: Sequence[Tree]
    forwards: Sequence[Rows]
    multiple: int
    tokens: int

    @cached_property
    def numbers(self) -> list[list[int]]:
        """Numbers of the texts in each forward, in the order of its rows."""
        return [[number for row in rows for number in row] for rows in self.forwards]

    @property
    def costs(self) -> list[int]:
        """Tokens that each forward computes, with prompts and padding."""
        lengths = [len(tree) for tree in self.trees]
        return [computed_tokens(lengths, [rows], self.multiple) for rows in self.forwards]

    def layout(self, number: int) -> TokenRows:
        """Token rows of forward ``number``."""
        return place_some(self.trees, self.forwards[number], self.multiple)[1]


_Microbatch = tuple[int, Future[TokenRows]]
"""The number of a microbatch, ``-1`` for a dummy whose result is ignored, and a future of its token rows."""


@dataclass
class ContrastiveObjective:
    """InfoNCE over one optimizer batch; ``chunk`` bounds the texts per forward, ``budget`` its tokens.

    ``layout``: as in ``text_batching``.
    ``note`` is called, once, for a batch in which no query has a negative.
    """

    decoder: Decoder
    recipe: Recipe
    sequencer: Sequencer
    budget: int
    loss: ContrastiveLoss = field(default_factory=ContrastiveLoss)
    chunk: int | None = None
    seed: int = 0
    note: Callable[[str], None] = warnings.warn
    layout: str = "auto"
    batching: Batching = field(init=False)
    _noted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.batching = text_batching(self.decoder, self.layout, self.budget)

    @property
    def execution(self) -> dict[str, Any]:
        """The layout."""
        return {"layout": self.batching.layout}

    def backward(self, groups: Sequence[Group], engine: Engine | None = None) -> BatchLosses:
        """Accumulate the gradients of this process' share of the batch's mean loss."""
        engine = engine or Engine()
        microbatches = self.microbatches(groups, engine.processes)
        costs = microbatches.costs
        by_rank = assign_to_ranks(costs, engine.processes)
        heaviest = max(sum(costs[number] for number in own if number >= 0) for own in by_rank)
        keep = self.chunk is None and heaviest <= self.budget
        loss = self.backward_through(microbatches, by_rank[engine.rank], groups, engine, keep_graph=keep)
        self.seed += len(microbatches.forwards)
        return BatchLosses(float(loss), texts=len(microbatches.trees), tokens=microbatches.tokens)

    def backward_through(
        self,
        microbatches: Microbatches,
        own: Sequence[int],
        groups: Sequence[Group],
        engine: Engine,
        *,
        keep_graph: bool,
    ) -> Tensor:
        """Backpropagate the batch's loss through this rank's microbatches; return the loss.

        ``own``: their numbers, ``-1`` for a dummy. ``keep_graph``: one forward and backward for all of them; else
        GradCache, except that the first, largest one keeps its graph and is not embedded twice.
        """
        kept = len(own) if keep_graph else 1
        with ThreadPoolExecutor(1, thread_name_prefix="layouts") as thread:  # prepares rows ahead
            own_rows = [(number, thread.submit(microbatches.layout, max(number, 0))) for number in own]
            with engine.accumulate(last=kept == len(own)):
                whole = engine.run(self._embed_all, own_rows[:kept])
                with torch.no_grad():
                    rest = engine.run(self._embed_all, own_rows[kept:]) if own_rows[kept:] else []
                leaf, loss = self._loss_at(microbatches, own, [*whole, *rest], groups, engine)
                gradients = _gradients_at(leaf, microbatches, own)
                torch.autograd.backward(whole, gradients[:kept])
            for place in range(kept, len(own)):
                with engine.accumulate(last=place == len(own) - 1):
                    engine.run(self._embed, *own_rows[place]).backward(gradients[place])
        self._look_for_contrast(loss, leaf, groups)
        return loss

    def _loss_at(
        self,
        microbatches: Microbatches,
        own: Sequence[int],
        embedded: Sequence[Tensor],
        groups: Sequence[Group],
        engine: Engine,
    ) -> tuple[Tensor, Tensor]:
        """All embeddings (texts, dim), as a leaf whose ``grad`` is that of the scaled loss; and the loss, detached."""
        leaf = embedded[0].new_zeros(len(microbatches.trees), embedded[0].shape[1]).detach()
        if live := [
            (microbatches.numbers[number], one) for number, one in zip(own, embedded, strict=True) if number >= 0
        ]:
            places = to_device(np.concatenate([numbers for numbers, _ in live]), leaf.device)
            leaf.index_copy_(0, places, torch.cat([one.detach() for _, one in live]))
        if engine.processes > 1:
            leaf = engine.total(leaf)
        leaf.requires_grad_()
        with torch.enable_grad():
            loss = self.loss(leaf, groups)
            (loss * engine.scale).backward()
        return leaf, loss.detach()

    def _look_for_contrast(self, loss: Tensor, embeddings: Tensor, groups: Sequence[Group]) -> None:
        """Warn, once, about a batch without negatives; called last, as this waits for the loss."""
        if self._noted or float(loss) != 0 or contrasts(self.loss.mask(embeddings, groups)):
            return
        self._noted = True
        self.note(
            f"a batch of {len(groups)} queries has nothing to learn from, and others may not either: no query has a "
            "negative, neither a hard one nor another row's passage that is not masked as a false negative"
        )

    def _embed_all(self, own_rows: Sequence[_Microbatch]) -> list[Tensor]:
        return [self._embed(number, token_rows) for number, token_rows in own_rows]

    def _embed(self, number: int, token_rows: Future[TokenRows]) -> Tensor:
        """Embeddings (texts of the microbatch, dim), not normalized."""
        with _seeded(self.seed + max(number, 0)):
            return pool(self.decoder.slots(token_rows.result()), self.recipe, normalize=False)

    def microbatches(self, groups: Sequence[Group], processes: int = 1) -> Microbatches:
        """Split a batch into forwards, at least one for each of ``processes`` where there are enough texts."""
        queries = self.sequencer.trees([group.query for group in groups], "query")
        passages = self.sequencer.trees([text for group in groups for text in group.passages], "passage")
        trees = queries.trees + passages.trees
        forwards = self.batching.forwards([len(tree) for tree in trees], processes)
        if self.chunk is not None:
            forwards = [rows for forward in forwards for rows in cut(forward, self.chunk)]
        return Microbatches(trees, forwards, self.batching.multiple, queries.tokens + passages.tokens)


def _gradients_at(leaf: Tensor, microbatches: Microbatches, own: Sequence[int]) -> list[Tensor]:
    """The gradient at the embeddings of each microbatch; zeros for a dummy."""
    assert leaf.grad is not None
    numbers = [microbatches.numbers[max(number, 0)] for number in own]
    rows = leaf.grad[to_device(np.concatenate(numbers), leaf.device)].split([len(texts) for texts in numbers])
    return [grad if number >= 0 else torch.zeros_like(grad) for number, grad in zip(own, rows, strict=True)]
