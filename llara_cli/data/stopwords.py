"""English stop words, and how the authors take them out of the texts that an embedding must predict."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NO_WORD = re.compile(r"[\W_]+")


@cache
def stop_words() -> frozenset[str]:
    """The words of ``stopwords_en.txt``, in lower case; its lines that begin with ``#`` tell where they are from."""
    lines = files("llara_cli.data").joinpath("stopwords_en.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def drop_stop_words(text: str) -> str:
    """The words of ``text`` that are no stop words, joined by one space, in the authors' way.

    What is neither letter nor digit parts words: of "don't" the pieces "don" and "t" are looked up (both are listed),
    and the ``! , . ?`` that the authors list beside the words never get that far.
    """
    listed = stop_words()
    return " ".join(word for word in _NO_WORD.sub(" ", text).split() if word.lower() not in listed)
