"""Defaults of a workspace: ``llara.toml`` has a table per command; flags win over it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llara_cli.core.errors import UserError
from llara_cli.training.config import DEFAULT_MODEL

FILE = "llara.toml"
TOP = "model"
"""The only setting above the tables."""
_WANTED: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    Path: "a path in quotes",
}
_TAKEN: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,), Path: (str,)}


class TableKey(NamedTuple):
    """What a key sets; ``negated``: its flag turns the setting off (``--no-...``, ``--keep-stop-words``)."""

    parameter: str
    kind: Any
    negated: bool = False
    repeatable: bool = False

    def value(self, given: Any) -> Any:
        """The parameter's value for a value of the table. Raises ``TypeError`` that says which type is expected."""
        if self.repeatable:
            items = given if isinstance(given, list) else [given]
            if not all(self._fits(item) for item in items):
                raise TypeError(f"{_WANTED[self.kind]}, or a list of such")
            return items
        if not self._fits(given):
            raise TypeError(_WANTED[self.kind])
        return not given if self.negated else given

    def _fits(self, given: Any) -> bool:
        # in Python, True is an int
        return isinstance(given, _TAKEN[self.kind]) and isinstance(given, bool) == (self.kind is bool)


def read_toml(workspace: Path) -> dict[str, Any]:
    """The workspace's defaults. Raises ``UserError`` if the file is not TOML, or its ``model`` is not a name."""
    path = workspace / FILE
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(found.get(TOP, ""), str):
        raise UserError(f"{path}: {TOP} must be a text in quotes, not {_shown(found[TOP])}")
    if found.get(TOP) == "":
        raise UserError(f"{path}: {TOP} is empty: give a value, or leave it out")
    return found


def command_table(workspace: Path, command: str, commands: Collection[str]) -> dict[str, Any]:
    """The table of a command. Raises ``UserError`` for a key that is neither a command nor ``model``."""
    path, found = workspace / FILE, read_toml(workspace)
    for key, value in found.items():
        if isinstance(value, dict) and key not in commands:
            raise UserError(f"{path}: unknown table [{key}]{_meant(key, commands)}")
        if not isinstance(value, dict) and key in commands:
            raise UserError(f"{path}: [{key}] must be a table")
        if key not in commands and key != TOP:
            raise UserError(
                f"{path}: unknown setting {key!r} above the tables{_meant(key, (TOP, *commands))};"
                f" a flag's default belongs below its command, as in [{command}]"
            )
    return dict(found.get(command, {}))


def command_defaults(
    workspace: Path, command: str, table: Mapping[str, Any], known: Mapping[str, TableKey]
) -> dict[str, Any]:
    """A command's table as parameter names and values. ``known``: flag or parameter name -> what it sets.

    Raises ``UserError`` for a key that is not a flag of the command, and for a value of the wrong type.
    """
    where = f"{workspace / FILE}: [{command}]"
    found: dict[str, Any] = {}
    for key, given in table.items():
        if key not in known:
            raise UserError(f"{where} has no setting {key}{_meant(key, [name for name in known if '_' not in name])}")
        setting = known[key]
        try:
            value = setting.value(given)
        except TypeError as error:
            raise UserError(f"{where} {key} must be {error}, not {_shown(given)}") from error
        if setting.parameter != "query" and "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"{where} {key} is empty: give a value, or leave it out")
        if setting.parameter in found and found[setting.parameter] != value:
            raise UserError(f"{where} {key} contradicts another setting of the table: leave one of them out")
        found[setting.parameter] = value
    return found


def _meant(name: str, known: Collection[str]) -> str:
    """``Did you mean`` the known name that is closest to a mistyped one."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def default_model(workspace: Path) -> str:
    """``model`` of ``llara.toml``, else the project's default base model."""
    return str(read_toml(workspace).get(TOP, DEFAULT_MODEL))
