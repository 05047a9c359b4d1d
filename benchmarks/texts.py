"""Real text for benchmarks: articles as examples of a chosen length, under a vocabulary trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llara_cli.data.pretraining_corpus import RawDocument, read_corpus
from llara_cli.model.recipe import Recipe
from llara_cli.model.tokenizer import PromptIds, TextTokenizer
from llara_cli.training.pretext import Example

Kind = Literal["full", "mixed"]
LENGTH, WORDS = 512, 5


def articles(corpus: Path) -> Iterator[str]:
    """The texts of a corpus, in order."""
    return (item.text for item in read_corpus([str(corpus)]) if isinstance(item, RawDocument))


def train_tokenizer(texts: Sequence[str], size: int) -> TextTokenizer:
    """A byte-level BPE of ``size`` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"))


class Texts:
    """Passages of articles: ``full`` ones of 512 tokens with both prompts, or ``mixed``: single paragraphs."""

    def __init__(self, corpus: Path, vocabulary: int = 32000, count: int = 400) -> None:
        self.articles = list(islice(articles(corpus), count))
        self.tokenizer = train_tokenizer(self.articles, vocabulary)

    def prompts(self, recipe: Recipe) -> PromptIds:
        """The recipe in ids."""
        return self.tokenizer.with_tokens(recipe.new_tokens).prompt_ids(recipe)

    def examples(self, kind: Kind, recipe: Recipe, count: int) -> list[Example]:
        """``count`` passages with their successors, drawn from all in a seeded order."""
        limit = self.prompts(recipe).text_limit(LENGTH)
        found = [pair for article in self.articles for pair in pairwise(self._passages(article, kind, limit))]
        order = np.random.default_rng(0).permutation(len(found))[:count]
        unique = recipe.targets == "unique"
        return [self._example(*found[number], unique=unique) for number in order]

    def _passages(self, article: str, kind: Kind, limit: int) -> list[Any]:
        if kind == "mixed":
            lines = [line for line in article.split("\n") if len(line.split()) >= WORDS]
            return [np.array(ids) for ids in self.tokenizer.encode(lines, limit)]
        ids = np.array(self.tokenizer.encode([article])[0])
        return [ids[at : at + limit] for at in range(0, len(ids) - limit + 1, limit)]

    def _example(self, text: Any, successor: Any, *, unique: bool) -> Example:
        targets = (np.unique(text), np.unique(successor)) if unique else (text, successor)
        return Example(text, {"self": targets[0], "next": targets[1]})
