"""Splits a document into consecutive passages."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

_BOUNDARY = re.compile(r"[.!?][\"')\]”’»]*(?=\s)|[。！？][”’」』）]*|\n[^\S\n]*\n")
"""The end of a sentence, with closing quotes and brackets, or a blank line."""


def split_document(text: str, token_ends: Sequence[int], limit: int) -> list[str]:
    """Consecutive passages of at most ``limit`` tokens each: as many whole sentences as fit.

    A sentence longer than ``limit`` is cut at the end of a line, else at white space, else after a token. Passages are
    stripped, none is empty, and together they have every character of ``text`` but white space. (A single character of
    more than ``limit`` tokens, such as an emoji in byte tokens, is not split.)

    Args:
        text: the document.
        token_ends: the end of each token in ``text`` (exclusive), in the tokens' order.
        limit: tokens per passage, at least 1.

    Takes time linear in the text, and a binary search per passage.
    """
    if limit < 1:
        raise ValueError(f"a passage needs room for at least one token, not {limit}")
    ends = list(accumulate(token_ends, max))  # a normalizer may reorder: make the ends non-decreasing
    boundaries = [match.start() if match[0].isspace() else match.end() for match in _BOUNDARY.finditer(text)]
    stop = len(text.rstrip())
    passages = []
    start = _skip_space(text, 0, stop)
    while start < stop:
        reach = _reach(ends, start, limit)
        cut = stop if reach is None else _cut(text, boundaries, start, reach)
        passages.append(text[start:cut].rstrip())
        start = _skip_space(text, cut, stop)
    return passages


def _reach(ends: Sequence[int], start: int, limit: int) -> int | None:
    """The latest end of a passage from ``start``: the end of its last token; None if the whole rest fits."""
    first = bisect_right(ends, start)
    after = first + limit
    if after >= len(ends):
        return None
    # Tokens of one character share its end: either all of them fit or none.
    last = bisect_left(ends, ends[after]) - 1
    return ends[last] if last >= first else ends[after]


def _cut(text: str, boundaries: Sequence[int], start: int, reach: int) -> int:
    """The last good place to cut in ``(start, reach]``: a sentence's end, a line's end, white space, else ``reach``."""
    sentence = bisect_right(boundaries, reach) - 1
    if sentence >= 0 and boundaries[sentence] > start:
        return boundaries[sentence]
    line = text.rfind("\n", start, reach + 1)
    return line if line > start else _last_space(text, start, reach)


def _last_space(text: str, start: int, reach: int) -> int:
    places = range(min(reach, len(text) - 1), start, -1)
    return next((place for place in places if text[place].isspace()), reach)


def _skip_space(text: str, start: int, stop: int) -> int:
    return next((place for place in range(start, stop) if not text[place].isspace()), stop)
