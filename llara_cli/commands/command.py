"""The base of all verbs: help, defaults from ``llara.toml``, and errors that name flags."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from typer.core import TyperCommand

from llara_cli.commands.help import write_help
from llara_cli.commands.llara_toml import FILE, TableKey, command_defaults, command_table
from llara_cli.commands.messages import with_flags
from llara_cli.commands.session import workspace_path
from llara_cli.core.errors import LlaraError, UserError
from llara_cli.core.names import expand_home

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
        "backend!=": ("parameters",),
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
"""By command: a parameter (or a value of it) on the command line -> parameters of ``llara.toml`` that it excludes.

``name=value``: if that value was typed; ``name!=value``: if another was; ``name!=``: another than the file's.

These are then ignored: a flag wins over the file, also over settings that it excludes.
"""


_PLACES = ("corpus", "train", "benchmark")
"""Parameters that may name a file or folder though their type is not ``Path``."""


def expanded(value: Any, is_place: bool) -> Any:
    """A parameter's value; in a path a leading ``~`` becomes the home folder, which shells do not always replace."""
    if isinstance(value, list | tuple):
        return type(value)(expanded(each, is_place) for each in value)
    return expand_home(value) if is_place and isinstance(value, str | Path) else value


class Command(TyperCommand):
    """A verb with defaults from ``llara.toml`` for flags that are not typed, and ``~`` in paths expanded."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as Typer does, with the defaults of the workspace."""
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
        """Run as Typer does; errors name flags, and say which values come from ``llara.toml``."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            message = with_flags(str(error))
            if keys := self._blamed(ctx, message):
                root = workspace_path(ctx.params.get("workspace"), ctx)
                message += f" ({', '.join(keys)}: from [{self.name}] in {root / FILE})"
            raise UserError(message) from error
        except LlaraError as error:
            raise type(error)(with_flags(str(error))) from error

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, description, examples, and the options by panel."""
        about, examples = self._paragraphs()
        write_help(self, ctx, formatter, about, examples)

    def _paragraphs(self) -> tuple[str, str]:
        """Description and examples, from the function's docstring."""
        told, _, examples = inspect.cleandoc(self.callback.__doc__ or "").partition("\n\nExamples:\n")
        return told, inspect.cleandoc(examples)

    def _refuse_empty(self, given: Mapping[str, Any]) -> None:
        """Raise ``UserError`` for an empty argument, as from an unset shell variable; only a query may be empty."""
        for parameter in self.params:
            value = given.get(str(parameter.name))
            if parameter.name != "query" and "" in (value if isinstance(value, (list, tuple)) else [value]):
                name = parameter.opts[0]
                raise UserError(f"{name if name.startswith('-') else name.upper()} is empty: give a value")

    def _blamed(self, ctx: Any, message: str) -> list[str]:
        """The flags in a message whose values come from ``llara.toml``."""
        found = []
        for parameter in self.params:
            flags = [flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")]
            named = [flag for flag in flags if re.search(rf"{flag}(?![\w-])", message)]
            if named and str(parameter.name) in (ctx.default_map or {}):
                source = ctx.get_parameter_source(str(parameter.name))
                found += named if source is not None and source.name == "DEFAULT_MAP" else []
        return found

    def _excluded(self, given: Mapping[str, Any], found: Mapping[str, Any]) -> set[str]:
        """Parameters of the file that are excluded by typed ones; ``found``: the file's values."""
        # an argument left out is None, or a sentinel of click
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

    def _settings(self) -> dict[str, TableKey]:
        """Long flags (as TOML keys, with dashes or underscores) -> what they set, without the workspace."""
        found: dict[str, TableKey] = {}
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
                    table_key = TableKey(name, kind, negated, repeatable)
                    found |= dict.fromkeys((key, key.replace("-", "_")), table_key)
        return found


def _kind(hint: Any) -> tuple[Any, bool]:
    """A parameter's type, and whether it takes several values: ``list[str] | None`` is (str, True)."""
    if get_origin(hint) is list:
        return get_args(hint)[0], True
    given = [kind for kind in get_args(hint) if kind is not NoneType]
    return _kind(given[0]) if given else (hint, False)
