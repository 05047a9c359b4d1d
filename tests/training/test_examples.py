"""Examples of a corpus: a passage's ids are those of the passage alone, wherever they were cut from."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import tokenizer as golden_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEXTS, make_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llara_cli.core.errors import UserError
from llara_cli.core.reporter import Reporter
from llara_cli.data.arrow_table import BLOCK
from llara_cli.data.passages import split_document
from llara_cli.data.pretraining_corpus import RawDocument
from llara_cli.data.stopwords import drop_stop_words
from llara_cli.model.recipe import PAPER, RELEASED, Recipe
from llara_cli.model.source import ModelSource
from llara_cli.model.tokenizer import TextTokenizer
from llara_cli.training.examples import ExampleBuilder

TINY = TextTokenizer(make_tokenizer())
documents = st.text(alphabet="abTH .!?\n\t\"'’…é😀。12", max_size=150) | st.text(max_size=60)
words = st.sampled_from(
    [*" ".join(TEXTS).split(), "naïve", "10,000", "e\u0301", "…", "\n", "\n\n", "\u00a0", " ", "😀!"]
)
texts = documents | st.lists(words, max_size=60).map(" ".join)


def with_pattern(**options: Any) -> TextTokenizer:
    """The tiny tokenizer with words as GPT-4 and Llama 3 part them: a full stop takes the line's end along."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE(**options))
    splitters = [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitters, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text.replace(". ", ".\n") for text in TEXTS * 3] + ["a.\nb.\n\nc!\n"] * 9, trainer)
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


LINES = with_pattern()
SKIPS = with_pattern(ignore_merges=True)


def check(tokenizer: TextTokenizer, text: str, limit: int) -> None:
    """Cut from the document or not, ids are what the passage alone has."""
    (document,) = tokenizer.encode_documents([text])
    passages = split_document(text, document.ends, limit)
    (found,) = tokenizer.encode_parts([document], [passages])
    assert [ids.tolist() for ids in found] == tokenizer.encode(passages)


@given(texts, st.integers(1, 30))
def test_a_passage_of_byte_pairs_has_its_own_ids(text: str, limit: int) -> None:
    check(TINY, text, limit)


@given(texts, st.integers(1, 30))
def test_where_full_stops_take_line_ends_along(text: str, limit: int) -> None:
    assert ".Ċ" in LINES.hf.get_vocab()
    check(LINES, text, limit)
    check(SKIPS, text, limit)


@given(text=texts, limit=st.integers(1, 30))
def test_a_passage_of_sentencepiece_has_its_own_ids(text: str, limit: int, sentencepiece: list[TextTokenizer]) -> None:
    for tokenizer in sentencepiece:
        check(tokenizer, text, limit)


@pytest.fixture(scope="module")
def sentencepiece(data_root: Path) -> list[TextTokenizer]:
    """Of the golden model, and of a model with 512 pieces."""
    small = ModelSource("stories", str(data_root / "stories260K-hf"))
    return [golden_tokenizer(data_root / "golden"), TextTokenizer.load(small)]


def test_real_articles(data_root: Path, sentencepiece: list[TextTokenizer]) -> None:
    with gzip.open(data_root / "wikipedia" / "part-01.jsonl.gz", "rt", encoding="utf-8") as file:
        articles = [json.loads(line)["text"][:8000] for line in islice(file, 12)]
    for tokenizer in (TINY, LINES, *sentencepiece):
        for article in articles:
            check(tokenizer, article, 60)


def test_most_of_a_passage_is_not_tokenised_again(sentencepiece: list[TextTokenizer]) -> None:
    text = " ".join(TEXTS * 20)
    for tokenizer in (TINY, *sentencepiece):
        (document,) = tokenizer.encode_documents([text])
        heads = [head for head, _ in tokenizer.halves(document, split_document(text, document.ends, 40))]
        assert sum(map(len, heads)) < len(text) / 10


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"dropout": 0.5}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
)
def test_what_is_not_known_to_part_at_spaces_is_tokenised_whole(change: dict[str, dict[str, Any]]) -> None:
    state = json.loads(make_tokenizer().backend_tokenizer.to_str())
    for part, values in change.items():
        state[part] = (state[part] or {}) | values if part == "model" else values
    backend = Tokenizer.from_str(json.dumps(state))
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    text = " ".join(TEXTS)
    (document,) = tokenizer.encode_documents([text])
    assert [head for head, _ in tokenizer.halves(document, TEXTS)] == TEXTS


def test_a_vocabulary_that_joins_words_is_tokenised_whole() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["of the sea of the hills of the town"] * 5, trainer)
    joins = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert any("Ġ" in piece[1:] for piece in joins.hf.get_vocab())
    check(joins, "the sea of the hills. of the town of the sea", 3)


def builder(recipe: Recipe = PAPER, max_length: int = 40) -> ExampleBuilder:
    """Of the tiny tokenizer."""
    known = TINY.with_tokens(recipe.new_tokens)
    return ExampleBuilder(known, recipe, known.prompt_ids(recipe), max_length)


@pytest.mark.parametrize(
    "recipe",
    [
        PAPER,
        replace(PAPER, target_limit="total"),
        replace(PAPER, targets="unique"),
        replace(PAPER, drop_stop_words=True),
        replace(PAPER, drop_stop_words=True, targets="unique", target_limit="total"),
    ],
)
def test_documents_give_what_their_passages_give_one_by_one(recipe: Recipe) -> None:
    built = builder(recipe, 60)
    articles = [" ".join(TEXTS), TEXTS[0], " ".join(reversed(TEXTS)) + "\n\n" + TEXTS[1]]
    found = list(built.document_examples(RawDocument(text, "here") for text in articles))
    limit = built.prompts.text_limit(60)
    expected = []
    for article in articles:
        (document,) = built.tokenizer.encode_documents([article])
        passages = split_document(article, document.ends, limit - 2)
        for text, successor in zip(passages, [*passages[1:], None], strict=True):
            expected.append([built.tokenizer.encode([text], limit)[0], target(built, text), target(built, successor)])
    assert len(found) > len(articles)
    assert [[list(e.text), list(e.targets["self"]), list(e.targets["next"])] for e in found] == expected


def target(built: ExampleBuilder, text: str | None) -> list[int]:
    """By the rules, from the text."""
    limit = 60 - built.prompts.start if built.recipe.target_limit == "total" else built.prompts.text_limit(60)
    words = drop_stop_words(text or "") if built.recipe.drop_stop_words else text or ""
    ids = built.tokenizer.encode([words], limit)[0]
    return ids if built.recipe.targets == "all" else sorted(set(ids) - built.tokenizer.special_ids)


def test_the_table_gives_what_was_written(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"text": " ".join(TEXTS[i % 5 :] + TEXTS[: i % 5])} for i in range(300)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = builder()
    with Reporter().bar("reading", None, unit="passages") as bar:
        table = built.build([str(corpus)], tmp_path / "cache" / "a.arrow", bar)
    expected = list(built.document_examples(RawDocument(row["text"], "") for row in rows))
    assert len(table) == len(expected) > BLOCK
    assert table.tokens() == sum(len(example.text) for example in expected)
    for number in (0, 1, BLOCK - 1, BLOCK, len(table) - 1):
        ours, theirs = table[number], expected[number]
        assert isinstance(ours.text, np.ndarray)
        np.testing.assert_array_equal(ours.text, theirs.text)
        for branch, ids in theirs.targets.items():
            np.testing.assert_array_equal(ours.targets[branch], ids)


def test_a_corpus_without_a_target_is_a_mistake_and_leaves_nothing(tmp_path: Path) -> None:
    corpus, path = tmp_path / "corpus.jsonl", tmp_path / "cache" / "a.arrow"
    corpus.write_text('{"input": "", "output_summarize": ""}\n')
    with (
        Reporter().bar("reading", None, unit="passages") as bar,
        pytest.raises(UserError, match="no text to learn"),
    ):
        builder().build([str(corpus)], path, bar)
    assert not list(path.parent.iterdir())


def test_the_cache_goes_by_content_tokenizer_and_settings() -> None:
    one, other = {"name": "a.jsonl", "sha256": "1"}, {"name": "b.jsonl", "sha256": "1"}
    assert builder().key([one]) == builder().key([other])
    keys = [
        builder().key([one]),
        builder().key([one | {"sha256": "2"}]),
        builder().key([one | {"name": "a.txt"}]),
        builder().key([{"name": "hf:a", "sha256": None}]),
        builder().key([{"name": "hf:b", "sha256": None}]),
        builder(max_length=41).key([one]),
        builder(RELEASED, 100).key([one]),
    ]
    assert len(set(keys)) == len(keys)
