"""Texts to embeddings: one prompt a role, hidden states at its slots, pooled and L2-normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llara_cli.console import UserError
from llara_cli.model.backbone import Backbone
from llara_cli.model.batching import micro_batches
from llara_cli.model.layout import Tree, lay_out
from llara_cli.model.recipe import Recipe
from llara_cli.model.tokens import PromptIds, TextTokenizer
from llara_cli.protocols import Encoded, Role
from llara_cli.settings import DEFAULT_LENGTH

BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens of one forward: on a CPU small batches stay in the cache, a GPU wants to be full."""


def pool(slots: Tensor, recipe: Recipe, *, normalise: bool = True) -> Tensor:
    """Embeddings (texts, dim) from the slots' hidden states (texts, slots, dim): ``last`` (paper) or ``mean``."""
    wide = slots.to(torch.promote_types(slots.dtype, torch.float32))
    pooled = wide.mean(dim=1) if recipe.embedding_pooling == "mean" else wide[:, -1]
    return functional.normalize(pooled, dim=-1) if normalise else pooled


def choose_length(length: int | None, max_positions: int | None) -> int:
    """``length``, or the default limited to the model's positions. Raises ``UserError`` where the model has fewer."""
    if length is None:
        return min(DEFAULT_LENGTH, max_positions or DEFAULT_LENGTH)
    if max_positions is not None and length > max_positions:
        raise UserError(f"a length of {length} tokens is above the model's {max_positions} positions")
    return length


@dataclass(frozen=True)
class Sequences:
    """Texts as trees of one branch, with counts of text tokens, of texts cut and of empty texts."""

    trees: list[Tree]
    tokens: int
    cut: int
    empty: int


class Sequencer:
    """Puts a role's prompt after each text, cutting the text (never the prompt) to the role's total length."""

    def __init__(self, tokenizer: TextTokenizer, recipe: Recipe, lengths: Mapping[Role, int]) -> None:
        """Raises ``UserError`` where a length is too short for the prompt."""
        self.tokenizer = tokenizer
        self.prompts: PromptIds = tokenizer.prompt_ids(recipe)
        self.branches = {role: recipe.roles[role] for role in lengths}
        self.limits = {role: self.prompts.text_limit(total, [recipe.roles[role]]) for role, total in lengths.items()}

    def trees(self, texts: Sequence[str], role: Role) -> Sequences:
        """One tree a text, in order."""
        limit = self.limits[role]
        branch = self.prompts.prompts[self.branches[role]]
        ids = self.tokenizer.encode(texts)
        trees = [Tree([*self.prompts.head, *row[:limit]], [branch], self.prompts.slots) for row in ids]
        tokens = sum(min(len(row), limit) for row in ids)
        return Sequences(trees, tokens, sum(len(row) > limit for row in ids), sum(not row for row in ids))


class Encoder:
    """Encodes texts with a backbone, longest first in batches of at most ``batch_tokens`` tokens."""

    def __init__(
        self, backbone: Backbone, recipe: Recipe, sequencer: Sequencer, batch_tokens: int | None = None
    ) -> None:
        self.backbone = backbone
        self.recipe = recipe
        self.sequencer = sequencer
        self.batch_tokens = batch_tokens or BATCH_TOKENS[backbone.device.type]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], role: Role, progress: Callable[[int], None] | None = None) -> Encoded:
        """Vectors (texts, dim) float32, L2-normalised, in the order of ``texts``; ``progress`` counts texts done."""
        sequences = self.sequencer.trees(texts, role)
        vectors = np.empty((len(texts), self.backbone.dim), np.float32)
        for batch in micro_batches([len(tree) for tree in sequences.trees], self.batch_tokens):
            slots = self.backbone.slots(lay_out([sequences.trees[number] for number in batch]))
            vectors[batch] = pool(slots, self.recipe).float().cpu().numpy()
            if progress is not None:
                progress(len(batch))
        return Encoded(vectors, sequences.tokens, sequences.cut, sequences.empty)
