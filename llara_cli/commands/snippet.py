"""Snippets of search results: the part of a text with most of the query's words, marked."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass

WIDTH = 160
"""Approximate characters of a snippet, which is cut between words."""
CUT = "…"
_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\S+")
_SHORT = 2
"""Words of a query up to this length count only if it has no longer ones."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
Span = tuple[int, int]


@dataclass(frozen=True)
class Snippet:
    """``marks``: start and end of the query's words in ``text``."""

    text: str
    marks: list[Span]


def snippet(text: str, query: str, width: int = WIDTH) -> Snippet:
    """The window of ``text`` (on one line) with the most different words of ``query``.

    Among equals, the one with the most occurrences, then the first. The words are in its middle.
    """
    text, wanted = one_line(text), query_words(query)
    start, end = (0, len(text)) if len(text) <= width else _best(text, wanted, width)
    shown = (CUT if start else "") + text[start:end] + (CUT if end < len(text) else "")
    words = (word for word in _WORD.finditer(shown) if word.group().casefold() in wanted)
    return Snippet(shown, [word.span() for word in words])


def one_line(text: str) -> str:
    """The text with white space, and characters that could control a terminal, collapsed to single spaces."""
    return " ".join(_CONTROL.sub(" ", text).split())


def query_words(query: str) -> set[str]:
    """The words to look for, lower-cased."""
    words = {word.casefold() for word in _WORD.findall(query)}
    return {word for word in words if len(word) > _SHORT} or words


def _best(text: str, wanted: set[str], width: int) -> Span:
    """Start and end of the best window of at most ``width`` characters, between words."""
    pieces = [piece.span() for piece in _PIECE.finditer(text)]
    ends = _window_ends(pieces, width)
    scores = _scores(text, pieces, ends, wanted)
    first = scores.index(max(scores))
    last = next((piece for piece in range(first, len(scores)) if scores[piece] != scores[first]), len(scores)) - 1
    # windows past the one that reaches the text's end only get shorter
    last = max(first, min(last, bisect_left(ends, len(pieces))))
    chosen = (first + last) // 2 if first and max(scores)[0] else first
    start = pieces[chosen][0]
    return start, min(pieces[ends[chosen] - 1][1], start + width)


def _window_ends(pieces: list[Span], width: int) -> list[int]:
    """For a window starting at each piece: the first piece after it; non-decreasing, at least one piece."""
    found, end = [], 0
    for number, (start, _) in enumerate(pieces):
        end = max(end, number + 1)
        while end < len(pieces) and pieces[end][1] - start <= width:
            end += 1
        found.append(end)
    return found


def _scores(text: str, pieces: list[Span], ends: list[int], wanted: set[str]) -> list[tuple[int, int]]:
    """For a window starting at each piece: distinct words of the query in it, and all their occurrences."""
    held: Counter[str] = Counter()
    words = [[w for w in map(str.casefold, _WORD.findall(text, *piece)) if w in wanted] for piece in pieces]
    scores, reached = [], 0
    for number, end in enumerate(ends):
        for piece in words[reached:end]:
            held.update(piece)
        reached = end
        scores.append((sum(count > 0 for count in held.values()), held.total()))
        held.subtract(words[number])
    return scores
