"""Of a long text only the beginning is tokenized, and its ids are those of the whole text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import TEXTS, make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llara_cli.model.encoder import Sequencer
from llara_cli.model.recipe import PAPER
from llara_cli.model.tokenizer import TextTokenizer, beginning

WORDS = [
    "the sea", "aaaa", "abab", " ", "\n", "\t\t ", "é", "e\u0301", "\U0001f9d1\u200d\U0001f680", "中文", "-", "'s",
    "12,345", "</s>",
]  # fmt: skip
pieces = st.lists(st.tuples(st.sampled_from([*WORDS, *TEXTS]), st.integers(1, 400)), min_size=1, max_size=5)


def _trained(tokenizer: Tokenizer, trainer: Any) -> TextTokenizer:
    tokenizer.train_from_iterator([*TEXTS, "aaaaaaaa abababab", "e\u0301 中文中文"] * 3, trainer)
    return TextTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)
    )


def byte_level() -> TextTokenizer:
    """Byte pairs within words, as GPT-2 has them."""
    return TextTokenizer(make_tokenizer())


def sentencepiece_bpe() -> TextTokenizer:
    """Pairs across all of a text, as Llama 2 has them: nothing splits it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "</s>"]
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False))


def unigram() -> TextTokenizer:
    """Metaspace and the most likely pieces, as T5 and XLM-R have them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    return _trained(tokenizer, trainer)


def word_piece() -> TextTokenizer:
    """Lower case, split at punctuation, words of more than a hundred characters unknown: BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "</s>"]
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))


KINDS: list[Callable[[], TextTokenizer]] = [byte_level, sentencepiece_bpe, unigram, word_piece]


@cache
def made(kind: Callable[[], TextTokenizer]) -> TextTokenizer:
    """Each tokenizer is trained once."""
    return kind()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(parts=pieces, limit=st.integers(1, 40))
@example(parts=[("abab", 1), ("abab", 264), ("the sea", 151)], limit=1)
def test_ids_are_those_of_the_whole_text(
    kind: Callable[[], TextTokenizer], parts: list[tuple[str, int]], limit: int
) -> None:
    tokenizer = made(kind)
    text = "".join(part * times for part, times in parts)
    (whole,) = tokenizer.encode([text])
    (read,) = tokenizer.each([text], limit)
    assert read[:limit] == whole[:limit]
    assert (len(read) > limit) == (len(whole) > limit)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_book_a_page_is_read(kind: Callable[[], TextTokenizer]) -> None:
    tokenizer, book = made(kind), " ".join(TEXTS) * 2000
    assert len(beginning(tokenizer.hf, book, 100)) < 6000
    (row,) = tokenizer.each([book], 100)
    assert 100 < len(row) < 6000
    sequences = Sequencer(tokenizer, PAPER, {"passage": 200}).trees([book, "", "the sea"], "passage")
    long, empty, short = (len(tree.trunk) for tree in sequences.trees)
    assert (sequences.tokens, sequences.cut, sequences.empty) == (long + short - 2 * empty, 1, 1)
    assert all(len(tree) <= 200 for tree in sequences.trees)


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_bpe, unigram])
@pytest.mark.parametrize("letters", ["a", "ab,", "中文。"])
def test_a_very_long_text_without_white_space_is_not_read_whole(
    kind: Callable[[], TextTokenizer], letters: str
) -> None:
    tokenizer = made(kind)
    text = letters * (300_000 // len(letters))
    assert len(beginning(tokenizer.hf, text, 30, split_special_tokens=True)) < 60_000
    (whole,) = tokenizer.encode([text])
    assert tokenizer.encode([text], 30) == [whole[:30]]
