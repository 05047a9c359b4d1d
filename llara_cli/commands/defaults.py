"""``workspace/llara.toml``: anything a flag can set, a table per command can set too; a flag wins."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from typer.core import TyperCommand

from llara_cli.commands.options import workspace_path
from llara_cli.console import UserError

FILE = "llara.toml"


class Flag(NamedTuple):
    """The parameter behind a flag; ``negated``: the flag says no (``--no-...``, ``--keep-stop-words``)."""

    parameter: str
    negated: bool
    repeatable: bool = False

    def value(self, told: Any) -> Any:
        """What the table's value means for the parameter."""
        if self.repeatable and not isinstance(told, list):
            return [told]
        return not told if self.negated else told


def read_toml(workspace: Path) -> dict[str, Any]:
    """The workspace's defaults. Raises ``UserError`` where the file is no TOML."""
    path = workspace / FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def command_defaults(workspace: Path, command: str, known: Mapping[str, Flag]) -> dict[str, Any]:
    """A command's table as parameter names and values. ``known``: flag or parameter name -> what it sets.

    Raises ``UserError`` for a key that is no flag of the command.
    """
    table = read_toml(workspace).get(command, {})
    if not isinstance(table, dict):
        raise UserError(f"{workspace / FILE}: [{command}] must be a table")
    unknown = [key for key in table if key not in known]
    if unknown:
        raise UserError(f"{workspace / FILE}: [{command}] has no setting {', '.join(unknown)}")
    return {known[key].parameter: known[key].value(value) for key, value in table.items()}


class Command(TyperCommand):
    """A verb whose defaults come from ``llara.toml`` where the flags are silent."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does, with the workspace's defaults known."""
        if not {"--help", "-h"} & set(args):
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            root = workspace_path(given.get("workspace"), ctx)
            ctx.default_map = command_defaults(root, str(self.name), self._flags())
        return super().parse_args(ctx, args)

    def _flags(self) -> dict[str, Flag]:
        """Long flags (as TOML keys, with dashes or underscores) -> the parameter that they set."""
        found: dict[str, Flag] = {}
        for parameter in self.params:
            name = str(parameter.name)
            names = [(flag, False) for flag in (name, *parameter.opts)]
            for flag, negated in [*names, *((flag, True) for flag in parameter.secondary_opts)]:
                key = flag.removeprefix("--")
                flagged = Flag(name, negated, bool(getattr(parameter, "multiple", False)))
                found |= dict.fromkeys((key, key.replace("-", "_")), flagged)
        return found
