"""The window of a text that a search shows, and the words that it marks."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from llara_cli.commands import render
from llara_cli.commands.snippet import CUT, WIDTH, Snippet, snippet
from llara_cli.core.console import Console

FILLER = "lorem ipsum dolor sit amet " * 40


def marked(found: Snippet) -> list[str]:
    """The words marked."""
    return [found.text[start:end] for start, end in found.marks]


def test_a_short_text_is_shown_whole_on_one_line() -> None:
    found = snippet("The  sea\nis\tblue. ", "blue sea")
    assert found.text == "The sea is blue."
    assert marked(found) == ["sea", "blue"]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_text(text: str) -> None:
    assert snippet(text, "sea") == Snippet("", [])


def test_whole_words_only_whatever_their_case() -> None:
    found = snippet("Season, SEA; undersea sea-side Straße", "Sea STRASSE")
    assert marked(found) == ["SEA", "sea", "Straße"]


def test_the_window_is_where_the_words_are() -> None:
    found = snippet(FILLER + "the Moon pulls the sea " + FILLER, "sea moon")
    assert marked(found) == ["Moon", "sea"]
    assert found.text.startswith(CUT)
    assert found.text.endswith(CUT)
    assert len(found.text) <= WIDTH + 2 * len(CUT)
    before, after = found.text.split("Moon")[0], found.text.split("sea")[1]
    assert min(len(before), len(after)) > 40


def test_more_different_words_win_over_more_occurrences() -> None:
    text = "sea sea sea sea " + FILLER + "sea moon " + FILLER
    assert marked(snippet(text, "sea moon")) == ["sea", "moon"]
    text = "sea moon " + FILLER + "sea moon moon " + FILLER
    assert marked(snippet(text, "sea moon")) == ["sea", "moon", "moon"]


def test_without_any_word_it_is_the_beginning() -> None:
    found = snippet(FILLER, "moon")
    assert found.text.startswith("lorem ipsum")
    assert found.text.endswith(CUT)
    assert found.marks == []
    assert snippet(FILLER, "?!").text == found.text


def test_words_at_the_beginning_and_at_the_end() -> None:
    assert snippet("sea " + FILLER, "sea").text.startswith("sea lorem")
    found = snippet(FILLER + "sea", "sea")
    assert found.text.endswith("sea")
    assert len(found.text) > WIDTH - 20


def test_small_words_count_where_there_are_no_others() -> None:
    assert marked(snippet("to be or not to be", "to be")) == ["to", "be", "to", "be"]
    assert marked(snippet("to see the sea", "to sea")) == ["sea"]


def test_a_word_longer_than_the_window_is_cut() -> None:
    found = snippet("x" * 1000, "sea")
    assert found.text == "x" * WIDTH + CUT
    assert len(snippet("海" * 1000 + " sea " + "海" * 1000, "sea").text) <= WIDTH + 2


@given(st.text(alphabet="ab c\nß", max_size=400), st.text(alphabet="abß ", max_size=9), st.integers(1, 60))
def test_a_snippet_is_a_part_of_the_text(text: str, query: str, width: int) -> None:
    found = snippet(text, query, width)
    flat = " ".join(text.split())
    inner = found.text.removeprefix(CUT).removesuffix(CUT)
    assert inner in flat
    assert len(inner) <= width
    assert (found.text == flat) == (len(flat) <= width)
    whole = set(flat.split())
    if all(len(word) <= width for word in whole):
        assert set(inner.split()) <= whole


def test_a_book_takes_no_time() -> None:
    book = "moon " * 200_000
    started = time.perf_counter()
    snippet(book, "sea moon")
    assert time.perf_counter() - started < 10


def test_the_table_marks_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.StringIO()
    screen = RichConsole(file=sink, force_terminal=True, width=200, color_system="standard")
    monkeypatch.setattr(Console, "rich", staticmethod(lambda *, stderr: screen))
    text = FILLER + "by the sea " + FILLER
    hit = {"rank": 1, "id": "a", "score": 0.5, "title": "", "text": text}
    render.show_hits(Console(), {"index": "i", "query": "the Sea", "hits": [hit]})
    assert "\x1b[1msea\x1b[0m" in sink.getvalue()
    assert CUT in sink.getvalue()


def test_a_text_controls_no_terminal() -> None:
    found = snippet("red \x1b[31m and \x9b2J\x00 a\u200db", "red")
    assert found.text == "red [31m and 2J a\u200db"
    assert found.marks == [(0, 3)]
