"""Parameters of an index, and the ``options.json`` that stores them beside a library's own file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.protocols import Parameters

OPTIONS = "options.json"
_FROM_ZERO = ("seed",)
"""Integer parameters that may be 0; others must be 1 or more."""
REPRODUCIBLE_ROWS = 20_000
"""A graph built by several threads differs from run to run; up to this size one thread is fast enough (a minute)."""


def check_parameters(given: Parameters, known: Mapping[str, type], backend: str) -> None:
    """Raise ``UserError`` for a parameter that is unknown, of a wrong type or out of range."""
    for key, value in given.items():
        if key not in known:
            names = ", ".join(known) or "none"
            raise UserError(f"the {backend} index has no parameter {key!r} here; it has: {names}")
        if not isinstance(value, known[key]):
            raise UserError(f"{key} must be of type {known[key].__name__}, not {value!r}")
        if isinstance(value, int) and value < (0 if key in _FROM_ZERO else 1):
            raise UserError(f"{key} must be {'0 or more' if key in _FROM_ZERO else 'positive'}, not {value}")


def refuse_spec(spec: str | None, backend: str) -> None:
    """Raise ``UserError`` if a backend that has no specs is given one."""
    if spec is not None:
        raise UserError(f"the {backend} index takes no spec (it was given {spec!r}); `backend='faiss'` does")


@dataclass(frozen=True)
class SavedIndex:
    """What must be known before a library opens its file: parameters, shape and checksum.

    hnswlib does not check files, and crashes the process on a damaged one.
    """

    parameters: dict[str, int | float | str]
    count: int
    dim: int
    bytes: int
    crc32: int
    spec: str | None = None


def save_options(file: Path, parameters: Parameters, shape: tuple[int, int], spec: str | None = None) -> None:
    """Write ``options.json`` beside the library's ``file``; ``shape``: (count, dim)."""
    saved = SavedIndex(dict(parameters), *shape, file.stat().st_size, _crc32(file), spec)
    text = json.dumps(asdict(saved), indent=1, sort_keys=True) + "\n"
    (file.parent / OPTIONS).write_text(text, encoding="utf-8")


def load_options(file: Path) -> SavedIndex:
    """What ``save_options`` wrote. Raises ``LlaraError`` if it, or the library's ``file``, is missing or damaged."""
    options = file.parent / OPTIONS
    try:
        saved = SavedIndex(**json.loads(options.read_text(encoding="utf-8")))
        whole = file.stat().st_size == saved.bytes and _crc32(file) == saved.crc32
    except (OSError, ValueError, TypeError) as error:
        raise LlaraError(f"{options}: the index is damaged ({error}): build it again") from error
    if not whole:
        raise LlaraError(f"{file}: the index is damaged (wrong checksum): build it again")
    return saved


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
