"""The pretext objectives EBAE and EBAR (arXiv 2312.15503, section 3.2) and the recipe's causal-LM loss.

EBAE pushes the SELF embedding of a text through the vocabulary projection and asks for the tokens of the text itself;
EBAR does the same with NEXT and the text that follows. One row of logits per embedding: never one per position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llara_cli.model.backbone import Backbone
from llara_cli.model.layout import Layout, Tree, lay_out, micro_batches, pack
from llara_cli.model.recipe import BRANCHES, Branch, Recipe
from llara_cli.model.tokens import PromptIds

LOGITS_BYTES = 128 * 2**20
"""Memory that one chunk of float32 logits may take."""
ROW_TOKENS = 256
"""Short texts share rows of this many tokens; measured on CPUs, longer shared rows waste attention."""


@dataclass(frozen=True)
class Example:
    """One text in token ids, already cut, with the target ids of each branch (none: the term is left out)."""

    text: Sequence[int]
    targets: Mapping[Branch, Sequence[int]]


@dataclass
class Terms:
    """Means over the optimiser batch; ``None`` where nothing in the batch has the term."""

    loss: float = 0.0
    ebae: float | None = None
    ebar: float | None = None
    lm: float | None = None
    texts: int = 0
    tokens: int = 0


def bag_of_tokens_loss(logits: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """``-1/|X| sum_{x in X} log softmax(W e)_x`` for each embedding (eq. 2 and 3).

    Args:
        logits: (embeddings, vocabulary), W e after the recipe's pooling over slots.
        targets: X of each embedding, not empty.

    Returns:
        (embeddings,) losses.
    """
    device = logits.device
    counts = torch.tensor([len(ids) for ids in targets], device=device)
    owner = torch.repeat_interleave(torch.arange(len(targets), device=device), counts)
    flat = torch.from_numpy(np.concatenate([np.asarray(ids, np.int64) for ids in targets])).to(device)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = wide[owner, flat] / counts[owner]
    return wide.logsumexp(dim=-1) - torch.zeros_like(wide[:, 0]).index_add(0, owner, picked)


def _in_chunks(function: Callable[[Tensor, slice], Tensor], hidden: Tensor, row_width: int) -> Tensor:
    """``function`` over chunks of ``hidden``'s rows, concatenated.

    With more than one chunk no logits are kept: backward computes them again, chunk by chunk.
    """
    step = max(1, LOGITS_BYTES // (4 * row_width))
    if len(hidden) <= step:
        return function(hidden, slice(0, len(hidden)))
    parts = [slice(at, at + step) for at in range(0, len(hidden), step)]
    run = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([run(hidden[part], part) for part in parts])


def pretext_losses(backbone: Backbone, slots: Tensor, targets: Sequence[Sequence[int]], recipe: Recipe) -> Tensor:
    """EBAE/EBAR losses (embeddings,) from the slots' hidden states (embeddings, slots, dim), chunk by chunk."""

    def chunk_loss(hidden: Tensor, part: slice) -> Tensor:
        logits = backbone.head(hidden)
        logits = logits.amax(dim=1) if recipe.logits_pooling == "max" else logits[:, -1]
        return bag_of_tokens_loss(logits, targets[part])

    used = slots if recipe.logits_pooling == "max" else slots[:, -1:]
    return _in_chunks(chunk_loss, used, backbone.vocabulary * used.shape[1])


def language_model_loss(backbone: Backbone, hidden: Tensor, next_ids: Tensor) -> Tensor:
    """Summed next-token cross-entropy of the positions given: hidden (tokens, dim), next_ids (tokens,)."""

    def chunk_loss(part: Tensor, where: slice) -> Tensor:
        logits = backbone.head(part)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(wide, next_ids[where], reduction="none")

    return _in_chunks(chunk_loss, hidden, backbone.vocabulary).sum()


@dataclass
class _Piece:
    """One tree of the batch: which example, which branches it carries, and whether it gives the LM loss."""

    example: Example
    branches: list[Branch]
    language_model: bool


@dataclass
class PretextObjective:
    """EBAE + EBAR (+ LM) over one optimiser batch, in micro-batches of at most ``budget`` tokens.

    ``joint``: SELF and NEXT of a text share its trunk in one forward; else one forward each.
    """

    backbone: Backbone
    recipe: Recipe
    prompts: PromptIds
    budget: int
    joint: bool = True
    row_tokens: int = ROW_TOKENS
    seed: int = 0
    _counts: dict[str, int] = field(default_factory=dict, init=False)

    def backward(self, examples: Sequence[Example], scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> Terms:
        """Accumulate the gradients of the whole batch; every mean is over all of ``examples``."""
        self._counts = self._count(examples)
        sums = {"ebae": 0.0, "ebar": 0.0, "lm": 0.0}
        for pieces, layout in self._micro_batches(examples):
            parts = self._forward(pieces, layout)
            total = torch.stack([self._weight(name) * value for name, value in parts.items()]).sum()
            scale(total).backward()
            for name, value in parts.items():
                sums[name] += float(value.detach())
        return self._terms(examples, sums)

    def _count(self, examples: Sequence[Example]) -> dict[str, int]:
        heads = 1 if self.prompts.head else 0
        lm = (
            sum(max(0, len(example.text) - 1 + heads) for example in examples) if self.recipe.language_model_loss else 0
        )
        ebae, ebar = (sum(1 for example in examples if example.targets[branch]) for branch in BRANCHES)
        return {"ebae": ebae, "ebar": ebar, "lm": lm}

    def _weight(self, name: str) -> float:
        """Factor on a summed term in the total; sums are already divided by the batch's count."""
        both = self._counts["ebae"] > 0 and self._counts["ebar"] > 0
        return 0.5 if self.recipe.pretext_mean and both and name != "lm" else 1.0

    def _terms(self, examples: Sequence[Example], sums: Mapping[str, float]) -> Terms:
        found = {name: sums[name] if self._counts[name] else None for name in sums}
        loss = sum(self._weight(name) * value for name, value in found.items() if value is not None)
        return Terms(loss, **found, texts=len(examples), tokens=sum(len(example.text) for example in examples))

    def _pieces(self, examples: Sequence[Example]) -> list[_Piece]:
        pieces = []
        for example in examples:
            branches: list[Branch] = [branch for branch in BRANCHES if example.targets[branch]]
            groups = [branches] if self.joint or len(branches) < 2 else [[branch] for branch in branches]
            for number, group in enumerate(groups):
                language_model = self.recipe.language_model_loss and number == 0 and len(example.text) > 0
                if group or language_model:
                    pieces.append(_Piece(example, group, language_model))
        return pieces

    def _micro_batches(self, examples: Sequence[Example]) -> Iterator[tuple[list[_Piece], Layout]]:
        pieces = self._pieces(examples)
        trees = [
            Tree(
                [*self.prompts.head, *piece.example.text],
                [self.prompts.prompts[b] for b in piece.branches],
                self.prompts.slots,
            )
            for piece in pieces
        ]
        lengths = [len(tree) for tree in trees]
        rows = pack(lengths, min(self.row_tokens, self.budget)) if self.joint else [[n] for n in range(len(trees))]
        row_lengths = [sum(lengths[number] for number in row) for row in rows]
        for batch in micro_batches(row_lengths, self.budget):
            numbers = [number for row in batch for number in rows[row]]
            place = {number: at for at, number in enumerate(numbers)}
            layout = lay_out([trees[n] for n in numbers], [[place[n] for n in rows[row]] for row in batch])
            yield [pieces[number] for number in numbers], layout

    def _forward(self, pieces: Sequence[_Piece], layout: Layout) -> dict[str, Tensor]:
        """The micro-batch's share of each mean: sums over its texts, divided by the whole batch's counts."""
        hidden = self.backbone.hidden(layout)
        parts: dict[str, Tensor] = {}
        owners = [(branch, piece.example.targets[branch]) for piece in pieces for branch in piece.branches]
        if owners:
            slots = hidden[torch.from_numpy(layout.slots).to(hidden.device)]
            losses = pretext_losses(self.backbone, slots, [ids for _, ids in owners], self.recipe)
            for name, branch in zip(("ebae", "ebar"), BRANCHES, strict=True):
                mine = torch.tensor([owner == branch for owner, _ in owners], device=losses.device)
                if bool(mine.any()):
                    parts[name] = losses[mine].sum() * (self.recipe.pretext_weight / self._counts[name])
        if self._counts["lm"] and (spans := self._text_spans(pieces, layout)):
            positions = torch.from_numpy(np.concatenate(spans)).to(hidden.device)
            ids = torch.from_numpy(layout.ids.reshape(-1)).to(hidden.device)
            parts["lm"] = language_model_loss(self.backbone, hidden[positions], ids[positions + 1]) / self._counts["lm"]
        return parts

    def _text_spans(self, pieces: Sequence[_Piece], layout: Layout) -> list[np.ndarray]:
        """Flat positions whose next token is a text token: from the last token of the head on."""
        head = len(self.prompts.head)
        spans = []
        for piece, start in zip(pieces, layout.trunks, strict=True):
            first, last = start + max(head - 1, 0), start + head + len(piece.example.text) - 1
            if piece.language_model and last > first:
                spans.append(np.arange(first, last))
        return spans
