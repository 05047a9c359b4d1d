"""Contrastive fine-tuning: the embeddings of a batch, shared among processes, and the gradients of their loss.

The loss is a function of all embeddings together, so it is taken in every process at once: each embeds its share of
the texts, the shares are summed into one matrix, and each pushes the loss' gradient at its own rows back through the
model. A share of more tokens than one forward may have is done as GradCache does it (arXiv 2101.06983): embed
everything without gradient, take the loss' gradient at the embeddings, then embed each part again and push its
part of that gradient through. The part that is largest keeps its graph and is embedded once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llara_cli.model.backbone import Backbone
from llara_cli.model.batching import deal
from llara_cli.model.encoder import Sequencer, pool
from llara_cli.model.layout import Layout, lay_out
from llara_cli.model.recipe import Recipe
from llara_cli.training.engine import Engine
from llara_cli.training.groups import Group
from llara_cli.training.info_nce import ContrastiveLoss, contrasts
from llara_cli.training.objective import Terms


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make dropout the same in both passes over a part, whatever lies between them."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Parts:
    """The texts of a batch, queries then passages, in forwards.

    ``numbers``: which texts are in each; ``tokens`` of the texts, prompts and padding not counted.
    """

    numbers: Sequence[Sequence[int]]
    layouts: Sequence[Layout]
    tokens: int

    @property
    def costs(self) -> list[int]:
        """Tokens that each computes, with prompts and padding."""
        return [int(layout.ids.size) for layout in self.layouts]

    @property
    def texts(self) -> int:
        """In the whole batch."""
        return sum(map(len, self.numbers))


@dataclass
class ContrastiveObjective:
    """InfoNCE over one optimiser batch; ``chunk`` bounds the texts of a forward, ``budget`` its tokens.

    ``note`` is told, once, of a batch in which no query has a passage to be contrasted with.
    """

    backbone: Backbone
    recipe: Recipe
    sequencer: Sequencer
    budget: int
    loss: ContrastiveLoss = field(default_factory=ContrastiveLoss)
    chunk: int | None = None
    seed: int = 0
    note: Callable[[str], None] = warnings.warn
    _noted: bool = field(default=False, init=False)

    @property
    def execution(self) -> dict[str, Any]:
        """Nothing that could have been computed another way."""
        return {}

    def backward(self, groups: Sequence[Group], engine: Engine | None = None) -> Terms:
        """Accumulate the gradients of this process' share of the batch's mean loss."""
        engine = engine or Engine()
        parts = self.parts(groups, engine.processes)
        hands = deal(parts.costs, engine.processes)
        heaviest = max(sum(parts.costs[number] for number in hand if number >= 0) for hand in hands)
        keep = self.chunk is None and heaviest <= self.budget
        loss = self.backward_through(parts, hands[engine.rank], groups, engine, keep_graph=keep)
        self.seed += len(parts.numbers)
        return Terms(float(loss), texts=parts.texts, tokens=parts.tokens)

    def backward_through(
        self, parts: Parts, hand: Sequence[int], groups: Sequence[Group], engine: Engine, *, keep_graph: bool
    ) -> Tensor:
        """The batch's loss; its gradients through the parts called ``hand``, of which ``-1`` counts for nothing.

        ``keep_graph``: one forward and one backward for all of them; else GradCache, but for the first and largest
        part: there is room for one part's graph, so that one need not be embedded again.
        """
        kept = len(hand) if keep_graph else 1
        with engine.accumulate(last=kept == len(hand)):
            whole = engine.run(self._embed_all, parts, hand[:kept])
            with torch.no_grad():
                rest = engine.run(self._embed_all, parts, hand[kept:]) if hand[kept:] else []
            leaf, loss = self._loss_at(parts, hand, [*whole, *rest], groups, engine)
            assert leaf.grad is not None
            gradients = [_rows(leaf.grad, parts, number) for number in hand]
            torch.autograd.backward(whole, gradients[:kept])
        for place, (number, gradient) in enumerate(zip(hand, gradients, strict=True)):
            if place >= kept:
                with engine.accumulate(last=place == len(hand) - 1):
                    engine.run(self._embed, parts, number).backward(gradient)
        return loss

    def _loss_at(
        self, parts: Parts, hand: Sequence[int], mine: Sequence[Tensor], groups: Sequence[Group], engine: Engine
    ) -> tuple[Tensor, Tensor]:
        """All embeddings (texts, dim), as a leaf that has the scaled loss' gradient; and the loss, detached."""
        leaf = mine[0].new_zeros(parts.texts, mine[0].shape[1]).detach()
        for number, found in zip(hand, mine, strict=True):
            if number >= 0:
                leaf[list(parts.numbers[number])] = found.detach()
        if engine.processes > 1:
            leaf = engine.total(leaf)
        leaf.requires_grad_()
        with torch.enable_grad():
            loss = self.loss(leaf, groups)
            (loss * engine.scale).backward()
        loss = loss.detach()
        if not self._noted and float(loss) == 0 and not contrasts(self.loss.mask(leaf, groups)):
            self._noted = True
            self.note(
                f"a batch of {len(groups)} queries teaches nothing, and others may too: each has its positive alone, "
                "without a hard negative or another row's passage that is not masked as a false negative"
            )
        return leaf, loss

    def _embed_all(self, parts: Parts, hand: Sequence[int]) -> list[Tensor]:
        return [self._embed(parts, number) for number in hand]

    def _embed(self, parts: Parts, number: int) -> Tensor:
        """(texts of the part, dim), not normalised."""
        number = max(number, 0)
        with _seeded(self.seed + number):
            return pool(self.backbone.slots(parts.layouts[number]), self.recipe, normalise=False)

    def parts(self, groups: Sequence[Group], processes: int = 1) -> Parts:
        """The forwards of a batch; at least as many as ``processes`` where there are texts enough."""
        queries = self.sequencer.trees([group.query for group in groups], "query")
        passages = self.sequencer.trees([text for group in groups for text in group.passages], "passage")
        trees = queries.trees + passages.trees
        lengths = [len(tree) for tree in trees]
        batching = self.backbone.batching("bucketed", self.budget)
        forwards = [[number for (number,) in rows] for rows in batching.forwards(lengths, processes)]
        if self.chunk is not None:
            forwards = [part[at : at + self.chunk] for part in forwards for at in range(0, len(part), self.chunk)]
        layouts = [lay_out([trees[number] for number in part]) for part in forwards]
        return Parts(forwards, layouts, queries.tokens + passages.tokens)


def _rows(gradient: Tensor, parts: Parts, number: int) -> Tensor:
    """The gradient at the texts of a part; zeros for a part that counts for nothing."""
    rows = gradient[list(parts.numbers[max(number, 0)])]
    return rows if number >= 0 else torch.zeros_like(rows)
