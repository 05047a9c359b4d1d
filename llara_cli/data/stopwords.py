"""English stop words, removed from target texts as the authors do it."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NO_WORD = re.compile(r"[\W_]+")


@cache
def stop_words() -> frozenset[str]:
    """The words of ``stopwords_en.txt``, in lower case; its lines that begin with ``#`` name the source."""
    lines = files("llara_cli.data").joinpath("stopwords_en.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def drop_stop_words(text: str) -> str:
    """The words of ``text`` that are not stop words, joined by single spaces, as in the authors' code.

    Characters other than letters and digits separate words: for "don't", "don" and "t" are looked up (both are listed),
    and the ``! , . ?`` in the authors' list never match.
    """
    listed = stop_words()
    return " ".join(word for word in _NO_WORD.sub(" ", text).split() if word.lower() not in listed)
