"""Names of artifacts, and folder names for everything else."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import TypeVar

from llara_cli.core.errors import UserError

PathT = TypeVar("PathT", bound=str | Path)
NAME_BYTES = 200
"""Most bytes of a name in UTF-8: file systems allow 255, and lock files and folders append to an artifact's name."""
_SLUG_BYTES = 100
_DIGITS = 8


def normal(name: str) -> str:
    """The name in Unicode's composed form (NFC), as the same accented letter can be typed in two ways."""
    return unicodedata.normalize("NFC", name)


def is_name(name: str) -> bool:
    """Whether an artifact may have this name: letters and digits of any script, '.', '_', '+', '-'.

    The first is a letter or digit.
    """
    fits = 0 < len(name.encode(errors="replace")) <= NAME_BYTES
    return fits and name == normal(name) and _is_letter(name[0]) and all(map(_is_kept, name))


def check_name(name: str) -> str:
    """``name`` in its normal form. Raises ``UserError`` for a name that no artifact may have."""
    if not is_name(normal(name)):
        raise UserError(
            f"bad name {name!r}: use letters and digits (of any script), '.', '_', '+', '-', starting with a letter or"
            f" digit, at most {NAME_BYTES} bytes"
        )
    return normal(name)


def slug(text: str, limit: int = _SLUG_BYTES) -> str:
    """Turn a text into a name of at most ``limit`` bytes: ``My wiki`` -> ``My-wiki``.

    Letters of every script are kept. If any are cut off, or there are none, digits of the text's sha256 are appended.
    """
    kept = "".join(mark if _is_kept(mark) else " " for mark in normal(text))
    name = re.sub(" +", "-", kept).rstrip("-._+")
    while name and not _is_letter(name[0]):
        name = name[1:]
    if name and len(name.encode()) <= limit:
        return name
    short = name.encode()[: limit - 1 - _DIGITS].decode(errors="ignore").rstrip("-._+")
    return f"{short or 'unnamed'}-{_digits(text)}"


def folder_name(name: str) -> str:
    """A folder name for ``name``, different for every name: the name itself if a folder may have it."""
    name = normal(name)
    return name if is_name(name) else f"{slug(name, NAME_BYTES - 1 - _DIGITS)}-{_digits(name)}"


def input_stem(path: Path) -> str:
    """An input's part of derived names: ``wiki.v2.jsonl.gz`` -> ``wiki.v2``; a folder keeps its whole name."""
    path = expand_home(path).resolve()
    name = path.name
    if not path.is_dir():
        name = re.sub(r"\.(gz|bz2|zst)$", "", name)
        name = name.rpartition(".")[0] or name
    return slug(name)


def _is_letter(mark: str) -> bool:
    return unicodedata.category(mark)[0] in "LN"


def _is_kept(mark: str) -> bool:
    return mark in "._+-" or unicodedata.category(mark)[0] in "LNM"  # M: combining vowel signs and accents


def _digits(text: str) -> str:
    return hashlib.sha256(normal(text).encode(errors="backslashreplace")).hexdigest()[:_DIGITS]


def expand_home(path: PathT) -> PathT:
    """A path whose leading ``~`` is replaced by the home folder, as shells do; unchanged if there is no such user."""
    if not str(path).startswith("~"):
        return path
    try:
        return type(path)(Path(path).expanduser())
    except RuntimeError:
        return path
