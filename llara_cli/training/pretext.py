"""The pretext objectives EBAE and EBAR (arXiv 2312.15503, section 3.2) and the recipe's causal-LM loss.

EBAE predicts the tokens of a text from its SELF embedding, through the LM head; EBAR predicts the tokens of the text
that follows from the NEXT embedding. There is one row of logits per embedding, not one per position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llara_cli.cpu import wide
from llara_cli.model.batching import Batching, Rows, assign_to_ranks, computed_tokens
from llara_cli.model.decoder import Decoder
from llara_cli.model.prefetch import while_computing
from llara_cli.model.prompts import BRANCHES, Branch
from llara_cli.model.recipe import Recipe
from llara_cli.model.sequences import Ids, TokenIds, TokenRows, Tree, place_some
from llara_cli.model.to_device import to_device
from llara_cli.model.tokenizer import PromptIds
from llara_cli.training.engine import Engine
from llara_cli.training.losses import language_model_loss, pretext_losses
from llara_cli.training.objective import BatchLosses
from llara_cli.training.projection import HeadGradients
from llara_cli.training.targets import Targets


@dataclass(frozen=True)
class Example:
    """One text as token ids, truncated, with the target ids of each branch (without any, its loss is left out)."""

    text: TokenIds
    targets: Mapping[Branch, TokenIds]


Factors = tuple[float, float, float]
"""Weights of the summed EBAE, EBAR and LM losses in the total."""


@dataclass(frozen=True)
class _Piece:
    """One tree of the batch: its example, its branches, and whether it has the LM loss."""

    example: Example
    branches: Sequence[Branch]
    language_model: bool


@dataclass(frozen=True)
class _Inputs:
    """Inputs of one forward, on the CPU.

    Attributes:
        kinds: (embeddings,) index into ``Factors`` of the weight of each embedding's loss.
        targets: of each embedding.
        positions: (tokens,) flat positions in the layout that have an LM loss.
        next_ids: (tokens,) the token that each predicts.
    """

    token_rows: TokenRows
    kinds: Ids
    targets: Targets
    positions: Ids
    next_ids: Ids


@dataclass(frozen=True)
class _Counts:
    """Numbers of texts with an EBAE target, with an EBAR target, and of positions with an LM loss, in a batch."""

    ebae: int
    ebar: int
    lm: int


@dataclass
class PretextObjective:
    """EBAE + EBAR (+ LM) over one optimizer batch, in the forwards that ``batching`` makes.

    ``joint``: SELF and NEXT share the text's trunk in one forward; else each has its own.
    """

    decoder: Decoder
    recipe: Recipe
    prompts: PromptIds
    batching: Batching
    joint: bool = True
    seed: int = 0
    _gathered: HeadGradients = field(default_factory=HeadGradients, init=False)

    @property
    def execution(self) -> dict[str, Any]:
        """The layout."""
        return {"layout": self.batching.layout}

    def backward(self, examples: Sequence[Example], engine: Engine | None = None) -> BatchLosses:
        """Accumulate the gradients of this process' share; means are over all ``examples``."""
        engine = engine or Engine()
        counts = self._count(examples)
        pieces = self._pieces(examples)
        trees = [self._tree(piece) for piece in pieces]
        lengths = [len(tree) for tree in trees]
        forwards = self.batching.forwards(lengths, engine.processes, spans=[tree.span for tree in trees])
        costs = [computed_tokens(lengths, [rows], self.batching.multiple) for rows in forwards]
        own = assign_to_ranks(costs, engine.processes)[engine.rank]
        sums = torch.zeros(3, device=self.decoder.device, dtype=torch.float64)
        self._gathered.start()
        scale = engine.scale  # applied before gradients are computed: in fp16 small ones would underflow
        rows = [forwards[max(number, 0)] for number in own]
        inputs = while_computing(partial(self._inputs, pieces, trees), rows, self.decoder.device)
        for place, (number, given) in enumerate(zip(own, inputs, strict=True)):
            idle = number < 0  # a dummy, as another process has more forwards: its result is ignored
            factors = (0.0, 0.0, 0.0) if idle else self._factors(counts, scale)
            self._gathered.last = place == len(own) - 1
            with engine.accumulate(last=self._gathered.last):
                total, summed = engine.run(self._forward, given, factors)
                total.backward()
            sums += 0 if idle else summed
        return self._batch_losses(examples, counts, engine.total(sums).tolist())

    def _count(self, examples: Sequence[Example]) -> _Counts:
        heads = 1 if self.prompts.head else 0
        lm = sum(max(0, len(example.text) - 1 + heads) for example in examples)
        ebae, ebar = (sum(len(example.targets[branch]) > 0 for example in examples) for branch in BRANCHES)
        return _Counts(ebae, ebar, lm if self.recipe.language_model_loss else 0)

    def _factors(self, counts: _Counts, scale: float = 1.0) -> Factors:
        """Weights of the summed EBAE, EBAR and LM losses in the batch's loss, times ``scale``."""
        both = 0.5 if self.recipe.pretext_mean and counts.ebae and counts.ebar else 1.0
        pretext = scale * both * self.recipe.pretext_weight
        return pretext / max(1, counts.ebae), pretext / max(1, counts.ebar), scale / max(1, counts.lm)

    def _batch_losses(self, examples: Sequence[Example], counts: _Counts, sums: Sequence[float]) -> BatchLosses:
        loss = sum(factor * value for factor, value in zip(self._factors(counts), sums, strict=True))
        ebae, ebar = (
            self.recipe.pretext_weight * value / count if count else None
            for value, count in zip(sums[:2], (counts.ebae, counts.ebar), strict=True)
        )
        lm = sums[2] / counts.lm if counts.lm else None
        return BatchLosses(loss, ebae, ebar, lm, len(examples), sum(len(example.text) for example in examples))

    def _pieces(self, examples: Sequence[Example]) -> list[_Piece]:
        pieces = []
        for example in examples:
            branches: list[Branch] = [branch for branch in BRANCHES if len(example.targets[branch])]
            groups = [branches] if self.joint or len(branches) < 2 else [[branch] for branch in branches]
            for number, group in enumerate(groups):
                language_model = self.recipe.language_model_loss and number == 0 and len(example.text) > 0
                if group or language_model:
                    pieces.append(_Piece(example, group, language_model))
        return pieces

    def _tree(self, piece: _Piece) -> Tree:
        trunk = np.concatenate([np.asarray(self.prompts.head, np.int64), piece.example.text])
        return Tree(trunk, [self.prompts.prompts[branch] for branch in piece.branches], self.prompts.slots)

    def _inputs(self, pieces: Sequence[_Piece], trees: Sequence[Tree], rows: Rows) -> _Inputs:
        """Inputs of the forward with these rows."""
        numbers, token_rows = place_some(trees, rows, self.batching.multiple)
        pieces = [pieces[number] for number in numbers]
        owners = [(piece.example, branch) for piece in pieces for branch in piece.branches]
        kinds = np.array([BRANCHES.index(branch) for _, branch in owners], np.int64)
        targets = Targets([example.targets[branch] for example, branch in owners])
        positions = self._text_positions(pieces, token_rows)
        return _Inputs(token_rows, kinds, targets, positions, token_rows.ids.reshape(-1)[positions + 1])

    def _forward(self, given: _Inputs, factors: Factors) -> tuple[Tensor, Tensor]:
        """The forward's share of the batch's loss, for ``backward``; and its summed losses (3,), detached."""
        hidden = self.decoder.hidden(given.token_rows)
        sums = torch.zeros(3, device=hidden.device, dtype=torch.float64)
        totals: list[Tensor] = []
        if len(given.targets):
            total, losses = self._pretext(given, hidden, factors)
            totals.append(total)
            sums.index_add_(0, to_device(given.kinds, hidden.device), losses.double())
        if len(given.positions):
            positions, next_ids = (to_device(ids, hidden.device) for ids in (given.positions, given.next_ids))
            total, lm = language_model_loss(
                self.decoder.projection, hidden[positions], next_ids, factors[2], self._gathered,
                logits=self.decoder.logits,
            )  # fmt: skip
            totals.append(total)
            sums[2] += lm
        if self._gathered.last and not len(given.targets):
            totals.append(self._nothing(hidden))
        return torch.stack(totals or [hidden.sum() * 0]).sum(), sums

    def _nothing(self, hidden: Tensor) -> Tensor:
        """A loss of zero, whose backward passes on the gradients gathered so far."""
        weights = torch.zeros(1, device=hidden.device, dtype=wide(hidden))
        targets = Targets([[0]])
        return pretext_losses(
            self.decoder.projection, hidden[:1, None], targets, weights, pool_slots=False, gathered=self._gathered,
            logits=self.decoder.logits,
        )[0]  # fmt: skip

    def _pretext(self, given: _Inputs, hidden: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
        """Weighted sum of the losses, for ``backward``, and the loss of each embedding."""
        weights = to_device(np.asarray(factors)[given.kinds], hidden.device).to(wide(hidden))
        slots = hidden[to_device(given.token_rows.slots, hidden.device)]
        return pretext_losses(
            self.decoder.projection, slots, given.targets, weights, pool_slots=self.recipe.logits_pooling == "max",
            gathered=self._gathered, logits=self.decoder.logits,
        )  # fmt: skip

    def _text_positions(self, pieces: Sequence[_Piece], token_rows: TokenRows) -> Ids:
        """Flat positions whose next token is a text token, from the last token of the head on."""
        head = len(self.prompts.head)
        spans = [np.zeros(0, np.int64)]
        for piece, start in zip(pieces, token_rows.trunks, strict=True):
            if piece.language_model:
                spans.append(np.arange(start + max(head - 1, 0), start + head + len(piece.example.text) - 1))
        return np.concatenate(spans)
