"""Texts to embeddings: one prompt a role, hidden states at its slots, pooled and L2-normalized."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llara_cli.core.config import DEFAULT_LENGTH
from llara_cli.core.errors import UserError
from llara_cli.core.protocols import Advance, Role, Vectors
from llara_cli.cpu import wide
from llara_cli.model.backends import Encoded
from llara_cli.model.batching import Batching, Rows, computed_tokens
from llara_cli.model.block_mask import row_multiple
from llara_cli.model.decoder import Decoder
from llara_cli.model.prefetch import prefetch, while_computing
from llara_cli.model.recipe import Recipe
from llara_cli.model.sequences import TokenRows, Tree, place_some
from llara_cli.model.tokenizer import PromptIds, TextTokenizer

FETCHED = 16384
"""Most vectors that stay on the device before they are fetched."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens of one forward: on a CPU small batches stay in the cache, a GPU needs to be filled."""


def pool(slots: Tensor, recipe: Recipe, *, normalize: bool = True) -> Tensor:
    """Embeddings (texts, dim) from the slots' hidden states (texts, slots, dim): ``last`` (paper) or ``mean``."""
    values = slots.to(wide(slots))
    pooled = values.mean(dim=1) if recipe.embedding_pooling == "mean" else values[:, -1]
    return functional.normalize(pooled, dim=-1) if normalize else pooled


def text_batching(decoder: Decoder, layout: str, budget: int) -> Batching:
    """How texts, each with one prompt, become forwards of at most ``budget`` tokens.

    ``layout``: ``packed`` (for models that take masks), ``bucketed`` or ``auto``: packed where attention skips pairs of
    tokens from different texts. Elsewhere packing gains little, as the texts of a forward are of like length, and a row
    of one text needs no mask at all.
    """
    wanted = layout == "packed" or (layout == "auto" and decoder.rows_are_free)
    chosen = "packed" if wanted and decoder.runs_jointly() else "bucketed"
    decoder.choose_attention(chosen)
    return decoder.batching(chosen, budget)


def choose_length(length: int | None, max_positions: int | None) -> int:
    """``length``, or the default limited to the model's positions. Raises ``UserError`` if the model has fewer."""
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
        """Raises ``UserError`` if a length is too short for the prompt."""
        self.tokenizer = tokenizer
        self.prompts: PromptIds = tokenizer.prompt_ids(recipe)
        self.branches = {role: recipe.roles[role] for role in lengths}
        self.limits = {role: self.prompts.text_limit(total, [recipe.roles[role]]) for role, total in lengths.items()}

    def trees(self, texts: Sequence[str], role: Role) -> Sequences:
        """One tree per text, in order."""
        limit = self.limits[role]
        branch = self.prompts.prompts[self.branches[role]]
        trees, lengths = [], []
        for row in self.tokenizer.each(texts, limit):
            lengths.append(len(row))
            trunk = np.array([*self.prompts.head, *row[:limit]], np.uint32)
            trees.append(Tree(trunk, [branch], self.prompts.slots))
        tokens = sum(min(length, limit) for length in lengths)
        return Sequences(trees, tokens, sum(length > limit for length in lengths), lengths.count(0))


class Encoder:
    """Encodes texts with a decoder, in batches of similar length of at most ``batch_tokens`` tokens.

    ``layout``: see ``text_batching``.
    ``note`` is called when a forward did not fit the GPU's memory; smaller ones follow.
    """

    def __init__(
        self,
        decoder: Decoder,
        recipe: Recipe,
        sequencer: Sequencer,
        batch_tokens: int | None = None,
        layout: str = "auto",
        note: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.decoder = decoder
        self.recipe = recipe
        self.sequencer = sequencer
        self._note = note
        self.batching = text_batching(decoder, layout, batch_tokens or BATCH_TOKENS[decoder.device.type])

    def encode(self, texts: Sequence[str], role: Role, progress: Advance | None = None) -> Encoded:
        """Vectors (texts, dim) float32, L2-normalized, in the order of ``texts``; ``progress`` counts texts done."""
        return self.compute(self.sequencer.trees(texts, role), progress)

    def encode_each(
        self, batches: Iterable[Sequence[str]], role: Role, progress: Advance | None = None
    ) -> Iterator[Encoded]:
        """``encode`` each batch; the next is tokenized while this one is computed."""
        for sequences in prefetch(lambda texts: self.sequencer.trees(texts, role), batches):
            yield self.compute(sequences, progress)

    @torch.inference_mode()
    def compute(self, sequences: Sequences, progress: Advance | None = None) -> Encoded:
        """``encode`` texts that are tokenized already."""
        trees = sequences.trees
        vectors = np.empty((len(trees), self.decoder.dim), np.float32)
        left = list(range(len(trees)))
        while left:
            forwards = self._forwards(trees, left)
            order = [number for rows in forwards for row in rows for number in row]
            found, done = self._run(trees, forwards, progress)
            vectors[order[: len(found)]] = found
            left = order[len(found) :]
            if left:
                self._shrink(trees, forwards[done])
        return Encoded(vectors, sequences.tokens, sequences.cut, sequences.empty)

    def _forwards(self, trees: Sequence[Tree], numbers: Sequence[int]) -> list[Rows]:
        """The forwards of the trees called ``numbers``; the longest, which need most memory, come first."""
        chosen = [trees[number] for number in numbers]
        forwards = self.batching.forwards([len(tree) for tree in chosen], spans=[tree.span for tree in chosen])
        return [[[numbers[place] for place in row] for row in rows] for rows in forwards]

    def _run(self, trees: Sequence[Tree], forwards: Sequence[Rows], progress: Advance | None) -> tuple[Vectors, int]:
        """Run forwards until one does not fit the GPU's memory; return their vectors (texts, dim) and how many ran.

        Vectors are fetched when ``FETCHED`` or all are computed, so that the host need not wait in between.
        """
        vectors, found, done = [torch.empty(0, self.decoder.dim)], list[Tensor](), 0
        place_in_rows = partial(place_some, trees, multiple=self.batching.multiple)
        for _, token_rows in while_computing(place_in_rows, forwards, self.decoder.device):
            pooled = self._embed(token_rows)
            if pooled is None:
                break
            found.append(pooled)
            done += 1
            if sum(map(len, found)) >= FETCHED:
                vectors.append(torch.cat(found).cpu())
                found.clear()
            if progress is not None:
                progress(len(pooled))
        vectors += [torch.cat(found).cpu()] if found else []
        return torch.cat(vectors).numpy(), done

    def _embed(self, token_rows: TokenRows) -> Tensor | None:
        """Vectors (texts, dim) of one forward; None if it does not fit the GPU's memory."""
        try:
            return pool(self.decoder.slots(token_rows), self.recipe).float()
        except torch.OutOfMemoryError:
            if len(token_rows.slots) == 1:
                raise
            return None

    def _shrink(self, trees: Sequence[Tree], rows: Rows) -> None:
        """Halve the size of further forwards, as one did not fit."""
        tokens = computed_tokens([len(tree) for tree in trees], [rows], self.batching.multiple)
        budget = tokens // 2
        self._note(f"out of memory with {tokens} tokens per forward: continuing with {budget}")
        multiple = min(self.batching.multiple, row_multiple(budget))
        self.batching = replace(self.batching, budget=budget, multiple=multiple)
        torch.cuda.empty_cache()
