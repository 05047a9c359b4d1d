"""Splitting a document: nothing is lost, nothing is too long, and cuts fall where a reader would put them."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llara_cli.data.passages import split_document

texts = st.text(alphabet="ab .!?\n\t\"')]。é😀", max_size=200) | st.text(max_size=60)


def word_ends(text: str) -> list[int]:
    """Where the tokens of a simple tokenizer end: words and single marks."""
    return [match.end() for match in re.finditer(r"\w+|[^\w\s]", text)]


def tokens_in(text: str, ends: list[int], passages: list[str]) -> list[int]:
    """Tokens whose end lies inside each passage."""
    counts, place = [], 0
    for passage in passages:
        start = text.index(passage, place)
        place = start + len(passage)
        counts.append(bisect_right(ends, place) - bisect_right(ends, start))
    return counts


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[str, list[int]]:
    """A text with token ends as a tokenizer may give them: any cuts, several tokens on one character, none on some."""
    text = draw(texts)
    ends = draw(st.lists(st.integers(1, max(len(text), 1)), max_size=60)) if text else []
    return text, sorted(ends)


@given(tokenized(), st.integers(1, 12))
def test_nothing_is_lost_and_nothing_is_empty(case: tuple[str, list[int]], limit: int) -> None:
    text, ends = case
    passages = split_document(text, ends, limit)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(passage and passage == passage.strip() for passage in passages)


@given(tokenized(), st.integers(1, 12))
def test_no_passage_is_longer_than_the_limit(case: tuple[str, list[int]], limit: int) -> None:
    text, ends = case
    ends = sorted(set(ends))  # several tokens on one character may not fit: see below
    assert all(count <= limit for count in tokens_in(text, ends, split_document(text, ends, limit)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(10, 40))
def test_whole_sentences_are_packed_greedily(lengths: list[int], limit: int) -> None:
    sentences = [" ".join(["word"] * (length - 1) + ["end."]) for length in lengths]
    text = " ".join(sentences)
    passages = split_document(text, word_ends(text), limit)
    assert " ".join(passages) == text
    assert all(passage.endswith("end.") for passage in passages)
    for passage, following in pairwise(passages):
        first_sentence = following.partition(". ")[0].removesuffix(".") + "."
        assert len(word_ends(f"{passage} {first_sentence}")) > limit, "the next sentence would have fitted"


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ('He said "go." Then (he went.) Away!', 7, ['He said "go."', "Then (he went.)", "Away!"]),
        ("One two three. Four", 4, ["One two three.", "Four"]),
        ("Is 3.5 enough? Yes", 6, ["Is 3.5 enough?", "Yes"]),
        ("No mark here\n\nnext paragraph goes on", 5, ["No mark here", "next paragraph goes on"]),
        ("No mark here\n \t\nnext paragraph goes on", 5, ["No mark here", "next paragraph goes on"]),
        ("a b c\nd e f g", 5, ["a b c", "d e f g"]),
        ("a b c d e", 2, ["a b", "c d", "e"]),
        ("多い文。短い文。", 4, ["多い文。", "短い文。"]),
        ("  \n ", 3, []),
        ("", 3, []),
    ],
)
def test_where_it_is_cut(text: str, limit: int, expected: list[str]) -> None:
    ends = list(range(1, len(text) + 1)) if "文" in text else word_ends(text)
    assert split_document(text, ends, limit) == expected


def test_a_long_word_is_cut_behind_a_token() -> None:
    assert split_document("abcdefghij", [3, 5, 7, 10], 2) == ["abcde", "fghij"]


def test_white_space_goes_before_the_end_of_a_token() -> None:
    assert split_document("ab cdef", [1, 2, 4, 5, 6, 7], 4) == ["ab", "cdef"]


def test_tokens_on_one_character_are_never_parted() -> None:
    ends = [1, 1, 1, 1, 2, 2, 2, 2]  # two emoji of four byte tokens each
    assert split_document("😀😀", ends, 5) == ["😀", "😀"]
    assert split_document("😀😀", ends, 3) == ["😀", "😀"]
    assert split_document("😀😀", ends, 8) == ["😀😀"]


def test_text_without_tokens_and_ends_out_of_order() -> None:
    assert split_document("text", [], 1) == ["text"]
    assert split_document("ab cd ef", [2, 5, 4, 8], 2) == split_document("ab cd ef", [2, 5, 5, 8], 2)


def test_no_room_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        split_document("a", [1], 0)


@pytest.mark.parametrize("text", ["\n" * 200_000 + "x", "." * 200_000, "x" * 200_000, "\n " * 100_000 + "x"])
def test_odd_texts_take_linear_time(text: str) -> None:
    passages = split_document(text, range(1, len(text) + 1), 50)
    assert "".join(passages) == text.strip()
