"""Stop words: the list, and the authors' way to drop them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llara_cli.data
from llara_cli.data.stopwords import drop_stop_words, stop_words


def test_the_list_is_nltks() -> None:
    words = stop_words()
    assert len(words) == 179
    assert {"i", "the", "don", "t", "don't", "wouldn't"} <= words
    assert not any(word != word.lower().strip() or not word for word in words)


def test_its_first_line_names_the_source() -> None:
    (path,) = (Path(folder) / "stopwords_en.txt" for folder in llara_cli.data.__path__)
    first = path.read_text("utf-8").splitlines()[0]
    assert first.startswith("#")
    assert "NLTK" in first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The river rises in the hills above the town.", "river rises hills town"),
        ("Don't you THINK so?", "THINK"),
        ("snake_case, e-mail & 3.5 km!", "snake case e mail 3 5 km"),
        ("l'été où", "l été où"),
        ("It was the same, and so are they... !?", ""),
        ("  ", ""),
    ],
)
def test_dropping(text: str, expected: str) -> None:
    assert drop_stop_words(text) == expected


@given(st.text())
def test_it_keeps_order_and_is_idempotent(text: str) -> None:
    kept = drop_stop_words(text)
    assert drop_stop_words(kept) == kept
    assert not {word.lower() for word in kept.split()} & stop_words()


def test_equal_to_the_sample_list(data_root: Path) -> None:
    assert stop_words() == set((data_root / "golden" / "stopwords.txt").read_text("utf-8").split())
