"""What callers of the Python API hand in: settings, paths, names and texts, checked with one clear error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from llara_cli.core.config import settings_of
from llara_cli.core.errors import UserError
from llara_cli.core.names import check_name, expand_home

ConfigT = TypeVar("ConfigT")
Inputs = str | Path | Sequence[str | Path]
_SURROGATE = re.compile("[\ud800-\udfff]")


def config_with(kind: type[ConfigT], config: ConfigT | None, settings: Mapping[str, Any]) -> ConfigT:
    """The config with these fields.

    Raises ``UserError`` for an unknown field, with the closest one, and for the config of another job.
    """
    if config is not None and not isinstance(config, kind):
        raise UserError(f"`config` must be {kind.__name__}(...), not {type(config).__name__}")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"{kind.__name__} has no setting `{unknown[0]}`; {_meant(kind, unknown[0], known)}")
    return kind(**settings) if config is None else replace(config, **settings)  # type: ignore[type-var]


def _meant(kind: type, name: str, known: Sequence[str]) -> str:
    """What an unknown setting may be: one of a group (``rank`` or ``lora_rank`` for ``lora.rank``), or the closest."""
    for field in settings_of(kind):
        if len(field.path) == 2 and name in (field.path[-1], "_".join(field.path)):
            group, inner = field.path
            return f"it is a setting of `{group}`: {group}={type(getattr(kind, group)).__name__}({inner}=...)"
    close = get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"it has: {', '.join(known)}"


def path_of(given: Any, argument: str, wanted: str = "a file or folder") -> Path:
    """A path; ``~`` is the home folder. Raises ``UserError``, which says what was ``wanted``, for other types."""
    if not isinstance(given, str | Path):
        raise UserError(f"`{argument}` must be {wanted}, not {given!r}")
    return Path(expand_home(given))


def inputs_of(given: Any, argument: str) -> list[str]:
    """One input or several, as strings; ``~`` is the home folder.

    Raises ``UserError`` for other types, and if there is none.
    """
    if isinstance(given, str | Path):
        return [str(expand_home(given))]
    if not isinstance(given, Sequence) or not all(isinstance(each, str | Path) for each in given):
        raise UserError(f"`{argument}` must be files or folders, not {given!r}")
    if not given:
        raise UserError(f"`{argument}` is empty: give at least one file or folder")
    return [str(expand_home(each)) for each in given]


def checked_name(given: Any) -> str | None:
    """The name of a new artifact; None: to be derived. Raises ``UserError`` for one that is no name."""
    if given is None:
        return None
    if not isinstance(given, str):
        raise UserError(f"`name` must be a string, not {given!r}")
    return check_name(given)


def texts_of(given: str | Iterable[str], argument: str) -> list[str]:
    """One text or several, as a list. Raises ``UserError``, which names the argument, for anything else."""
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
        raise UserError(f"`{argument}` must be a text or a list of texts, not {type(given).__name__}")
    texts = [given] if isinstance(given, str) else list(given)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"`{argument}` must be strings, not {type(text).__name__}")
        if not text.isascii() and _SURROGATE.search(text):
            raise UserError(
                f"`{argument}`: text {number} (counted from 0) is not valid Unicode: it has half a surrogate pair"
            )
    return texts
