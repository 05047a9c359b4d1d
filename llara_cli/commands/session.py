"""Workspace and console of a verb, and the flags of every verb."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llara_cli.core.console import Console
from llara_cli.core.errors import UserError
from llara_cli.core.launcher import is_follower, launched_processes
from llara_cli.core.names import expand_home

if TYPE_CHECKING:
    from llara_cli.core.workspace import Workspace

SHARED = ("pretrain", "finetune", "encode")
"""Verbs that can run in several launched processes."""
WORKSPACE_HELP = "Directory of all artifacts."
WORKSPACE_DEFAULT = "$LLARA_WORKSPACE, else ./workspace"
GLOBAL_FLAGS: dict[str, tuple[Any, Any]] = {
    "workspace": (
        Annotated[
            Path | None,
            typer.Option(
                "--workspace", "-w", help=WORKSPACE_HELP, show_default=WORKSPACE_DEFAULT, metavar="DIR",
                rich_help_panel="Everywhere",
            ),
        ],
        None,
    ),
    "as_json": (
        Annotated[
            bool, typer.Option("--json", help="Print exactly one JSON object on stdout.", rich_help_panel="Everywhere")
        ],
        False,
    ),
    "quiet": (
        Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress and notes.", rich_help_panel="Everywhere")],
        False,
    ),
    "verbose": (
        Annotated[
            bool,
            typer.Option(
                "--verbose", "-v", help="Show more notes, and a traceback on errors.", rich_help_panel="Everywhere"
            ),
        ],
        False,
    ),
}  # fmt: skip
"""Options of every verb: parameter -> (type with its option, default)."""


@dataclass(frozen=True)
class Session:
    """The workspace and the console of a verb."""

    workspace: Workspace
    console: Console


def workspace_path(given: Path | None, ctx: Any) -> Path:
    """``-w`` after the verb, before it, ``$LLARA_WORKSPACE``, ``./workspace``. Raises ``UserError`` for a file."""
    outer = ctx.parent.params.get("workspace") if ctx.parent is not None else None
    root = expand_home(Path(given or outer or os.environ.get("LLARA_WORKSPACE") or "workspace"))
    blocking = next((path for path in (root, *root.parents) if path.exists()), root)
    if blocking.exists() and not blocking.is_dir():
        raise UserError(f"workspace {root}: {blocking} is a file, not a directory")
    return root


def open_session(
    ctx: typer.Context,
    translate: Callable[[str], str],
    workspace: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> Session:
    """Open the session of a verb. The workspace itself is created when something is first written.

    ``translate``: applied to notes and warnings before they are shown.
    """
    from llara_cli.core.workspace import Workspace

    if launched_processes() > 1 and ctx.info_name not in SHARED:
        raise UserError(f"{ctx.info_name} runs in one process; {', '.join(SHARED)} run in several")
    console = Console(as_json, quiet, verbose, muted=is_follower(), translate=translate)
    return Session(Workspace(workspace_path(workspace, ctx), console), console)


def yield_standard_output(console: Console, output: Path | None) -> None:
    """Print no result if ``--output`` is standard output itself.

    Raises ``UserError`` under ``--json``, which is one object on standard output.
    """
    from llara_cli.core.output_files import is_standard_output

    if output is None or not is_standard_output(output):
        return
    if console.as_json:
        raise UserError(f"--json prints on standard output, and so does --output {output}: leave one of them out")
    console.taken = True
