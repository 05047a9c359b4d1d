"""What callers of the Python API hand in: settings, paths, names and texts, checked with one clear error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from llara_cli.core.config import settings_of, shown
from llara_cli.core.errors import UserError
from llara_cli.core.names import check_name, expand_home

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")
Inputs = str | Path | Sequence[str | Path]
_SURROGATE = re.compile("[\ud800-\udfff]")


def config_with(kind: type[ConfigT], config: ConfigT | None, settings: Mapping[str, Any]) -> ConfigT:
    """The config with these fields.

    Raises ``UserError`` for an unknown field, with the closest one, and for the config of another job.
    """
    if config is not None and not isinstance(config, kind):
        raise UserError(f"`config` must be {kind.__name__}(...), not {type(config).__name__}")
    known = [field.name for field in fields(kind)]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"{kind.__name__} has no setting `{unknown[0]}`; {_meant(kind, unknown[0], known)}")
    return kind(**settings) if config is None else replace(config, **settings)


def _meant(kind: type, name: str, known: Sequence[str]) -> str:
    """What an unknown setting may be: one of a group (``rank`` or ``lora_rank`` for ``lora.rank``), or the closest."""
    grouped = [field.path for field in settings_of(kind) if len(field.path) == 2]
    names = {form: path for path in grouped for form in (path[1], "_".join(path), ".".join(path))}
    closest = get_close_matches(name, [*known, *names], n=1)
    if not closest:
        return f"it has: {', '.join(known)}"
    if closest[0] in known:
        return f"did you mean `{closest[0]}`?"
    group, inner = names[closest[0]]
    return f"did you mean `{group}.{inner}`? Write {group}={get_type_hints(kind)[group].__name__}({inner}=...)"


def path_of(given: Any, argument: str, wanted: str = "a file or folder") -> Path:
    """A path; ``~`` is the home folder. Raises ``UserError``, which says what was ``wanted``, for anything else."""
    if not _is_place(given):
        raise UserError(f"`{argument}` must be {wanted}, not {shown(given)}")
    return Path(expand_home(given))


def inputs_of(given: Any, argument: str) -> list[str]:
    """One input or several, as strings; ``~`` is the home folder.

    Raises ``UserError`` for anything else, and if there is none.
    """
    several = [given] if isinstance(given, str | Path) else given
    if not isinstance(several, Sequence) or not all(_is_place(each) for each in several):
        raise UserError(f"`{argument}` must be files or folders, not {shown(given)}")
    if not several:
        raise UserError(f"`{argument}` is empty: give at least one file or folder")
    return [str(expand_home(each)) for each in several]


def _is_place(given: Any) -> bool:
    """Whether it can name a file or folder; an empty text would be the working directory."""
    return isinstance(given, str | Path) and given != ""


def known_name(given: Any) -> str:
    """The name of an artifact that exists. Raises ``UserError`` for another type."""
    if not isinstance(given, str):
        raise UserError(f"`name` must be a string, not {shown(given)}")
    return given


def checked_name(given: Any) -> str | None:
    """The name of a new artifact; None: to be derived. Raises ``UserError`` for one that is no name."""
    return None if given is None else check_name(known_name(given))


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
