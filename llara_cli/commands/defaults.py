"""``workspace/llara.toml``: anything a flag can set, a table per command can set too; a flag wins."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from typer.core import TyperCommand

from llara_cli.commands.options import workspace_path
from llara_cli.core.errors import UserError

FILE = "llara.toml"
TOP = "model"
"""The one setting that stands above the tables."""
_WANTED: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    Path: "a path in quotes",
}
_TAKEN: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,), Path: (str,)}
_TRAINING: dict[str, tuple[str, ...]] = {
    "max_steps": ("epochs",),
    "epochs": ("max_steps",),
    "backend!=full": ("weights",),
    "optimizer!=adamw-8bit": ("weights",),
}
YIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {**_TRAINING},
    "finetune": {**_TRAINING, "rounds=1": ("corpus",)},
    "encode": {"corpus": ("from_",), "from_": ("corpus", "dim")},
    "index": {
        "append": ("remove",),
        "remove": ("append", "embeddings"),
        "embeddings": ("remove",),
        "backend!=faiss": ("spec",),
        "backend!=": ("set_",),
    },
    "search": {
        "query": ("queries", "output", "interactive"),
        "queries": ("query", "interactive"),
        "output": ("query", "interactive"),
        "interactive": ("query", "queries", "output"),
    },
    "mine": {"index": ("corpus", "max_length", "model"), "corpus": ("index",), "model=bm25": ("index",)},
    "evaluate": {
        "benchmark": ("qrels",),
        "qrels": ("benchmark",),
        "model": ("run", "qrels", "name"),
        "run": ("model",),
        "as_json": ("format_",),
        "format_": ("as_json",),
    },
    "compare": {"as_json": ("format_",), "format_": ("as_json",)},
}
"""By command: a parameter (or a value of it) that was typed -> parameters that it excludes.

``name=value``: where that value was typed; ``name!=value``: where another was; ``name!=``: another than the file's.

Values of those in the file are then passed over: a flag wins, also over the settings that it excludes.
"""


class Setting(NamedTuple):
    """What a key of a table sets; ``negated``: its flag says no (``--no-...``, ``--keep-stop-words``)."""

    parameter: str
    kind: Any
    negated: bool = False
    repeatable: bool = False

    def value(self, told: Any) -> Any:
        """What the table's value means for the parameter. Raises ``TypeError`` saying what is wanted."""
        if self.repeatable:
            items = told if isinstance(told, list) else [told]
            if not all(self._fits(item) for item in items):
                raise TypeError(f"{_WANTED[self.kind]}, or a list of such")
            return items
        if not self._fits(told):
            raise TypeError(_WANTED[self.kind])
        return not told if self.negated else told

    def _fits(self, told: Any) -> bool:
        # to Python, true is a whole number
        return isinstance(told, _TAKEN[self.kind]) and isinstance(told, bool) == (self.kind is bool)


def read_toml(workspace: Path) -> dict[str, Any]:
    """The workspace's defaults. Raises ``UserError`` where the file is no TOML, or has a ``model`` that is no name."""
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
        raise UserError(f"{path}: {TOP} is empty: name something, or leave it out")
    return found


def command_table(workspace: Path, command: str, commands: Collection[str]) -> dict[str, Any]:
    """The table of a command. Raises ``UserError`` for what is neither a command's table nor ``model``."""
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
    workspace: Path, command: str, table: Mapping[str, Any], known: Mapping[str, Setting]
) -> dict[str, Any]:
    """A command's table as parameter names and values. ``known``: flag or parameter name -> what it sets.

    Raises ``UserError`` for a key that is no flag of the command, and for a value that is none for it.
    """
    where = f"{workspace / FILE}: [{command}]"
    found: dict[str, Any] = {}
    for key, told in table.items():
        if key not in known:
            raise UserError(f"{where} has no setting {key}{_meant(key, [name for name in known if '_' not in name])}")
        setting = known[key]
        try:
            value = setting.value(told)
        except TypeError as error:
            raise UserError(f"{where} {key} must be {error}, not {_shown(told)}") from error
        if setting.parameter != "query" and "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"{where} {key} is empty: name something, or leave it out")
        if setting.parameter in found and found[setting.parameter] != value:
            raise UserError(f"{where} {key} contradicts another setting of the table: leave one of them out")
        found[setting.parameter] = value
    return found


def _meant(name: str, known: Collection[str]) -> str:
    """A guess at the name that a mistyped one stands for."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


_PLACES = ("corpus", "train", "benchmark")
"""Parameters that may name a file or folder though their type is not ``Path``."""


def expanded(value: Any, is_place: bool) -> Any:
    """A parameter's value; of a place, with the home folder for a leading ``~``, which shells replace at times only."""
    if isinstance(value, list | tuple):
        return type(value)(expanded(each, is_place) for each in value)
    if not is_place or not str(value).startswith("~"):
        return value
    try:
        return type(value)(Path(value).expanduser())
    except RuntimeError:  # no user of that name: a file that is called so
        return value


class Command(TyperCommand):
    """A verb whose defaults come from ``llara.toml`` where the flags are silent; ``~`` in paths is the home folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does, with the workspace's defaults known."""
        if not {"--help", "-h"} & set(args):
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            self._refuse_empty(given)
            root = workspace_path(given.get("workspace"), ctx)
            commands = ctx.parent.command.commands if ctx.parent is not None else [str(self.name)]
            if table := command_table(root, str(self.name), commands):
                found = command_defaults(root, str(self.name), table, self._settings())
                excluded = self._excluded(given, found)
                ctx.default_map = {name: value for name, value in found.items() if name not in excluded}
        rest = super().parse_args(ctx, args)
        places = self._places()
        ctx.params = {name: expanded(value, name in places) for name, value in ctx.params.items()}
        return rest

    def _places(self) -> set[str]:
        """Parameters that may name a file or folder."""
        return {*_PLACES, *(name for name, hint in get_type_hints(self.callback).items() if _kind(hint)[0] is Path)}

    def invoke(self, ctx: Any) -> Any:
        """As Typer does; an error about a flag that nobody typed says where its value is from."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if keys := self._blamed(ctx, str(error)):
                root = workspace_path(ctx.params.get("workspace"), ctx)
                raise UserError(f"{error} ({', '.join(keys)}: from [{self.name}] in {root / FILE})") from error
            raise

    def _refuse_empty(self, given: Mapping[str, Any]) -> None:
        """Raise ``UserError`` for an empty argument, which a shell makes of an unset variable; a query may be one."""
        for parameter in self.params:
            value = given.get(str(parameter.name))
            if parameter.name != "query" and "" in (value if isinstance(value, (list, tuple)) else [value]):
                name = parameter.opts[0]
                raise UserError(f"{name if name.startswith('-') else name.upper()} is empty: name something")

    def _blamed(self, ctx: Any, message: str) -> list[str]:
        """The flags in a message whose values come from the file."""
        found = []
        for parameter in self.params:
            flags = [flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")]
            named = [flag for flag in flags if re.search(rf"{flag}(?![\w-])", message)]
            if named and str(parameter.name) in (ctx.default_map or {}):
                source = ctx.get_parameter_source(str(parameter.name))
                found += named if source is not None and source.name == "DEFAULT_MAP" else []
        return found

    def _excluded(self, given: Mapping[str, Any], found: Mapping[str, Any]) -> set[str]:
        """Parameters that cannot go with what was typed, and were not typed; ``found``: the file's values."""
        # an argument left out is None, or an object of click's own
        values = {name: value for name, value in given.items() if isinstance(value, str | int | list | tuple)}
        typed = {name: str(value) for name, value in values.items() if value not in ((), [])}
        excluded: set[str] = set()
        for rule, others in YIELDS.get(str(self.name), {}).items():
            name, relation, value = re.split(r"(!?=|$)", rule, maxsplit=1)
            if name not in typed:
                continue
            is_equal = typed[name] == (value or str(found.get(name, typed[name])))
            if not relation or is_equal == (relation == "="):
                excluded.update(others)
        return excluded - typed.keys()

    def _settings(self) -> dict[str, Setting]:
        """Long flags (as TOML keys, with dashes or underscores) -> what they set; not the place of the file itself."""
        found: dict[str, Setting] = {}
        hints = get_type_hints(self.callback)
        for parameter in self.params:
            name = str(parameter.name)
            if name not in hints or name == "workspace":
                continue
            kind, repeatable = _kind(hints[name])
            names = [(flag, False) for flag in (name, *parameter.opts)]
            for flag, negated in [*names, *((flag, True) for flag in parameter.secondary_opts)]:
                key = flag.removeprefix("--")
                if not key.startswith("-"):
                    setting = Setting(name, kind, negated, repeatable)
                    found |= dict.fromkeys((key, key.replace("-", "_")), setting)
        return found


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of a parameter's values, and whether it takes several: ``list[str] | None`` is (str, True)."""
    if get_origin(hint) is list:
        return get_args(hint)[0], True
    given = [kind for kind in get_args(hint) if kind is not NoneType]
    return _kind(given[0]) if given else (hint, False)
