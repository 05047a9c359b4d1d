"""``llara index``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llara_cli.commands.completion import completer
from llara_cli.commands.flags import DryRun, Name, Restart
from llara_cli.commands.render import show_facts
from llara_cli.commands.session import Session
from llara_cli.core.errors import UserError
from llara_cli.retrieval.config import IndexConfig


def index(
    session: Session,
    ctx: typer.Context,
    config: IndexConfig,
    embeddings: Annotated[
        str | None,
        typer.Argument(
            help="Embeddings of the workspace.", show_default="the newest of passages",
            autocompletion=completer("embeddings"),
        ),
    ] = None,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add the embeddings to the index called --name.", rich_help_panel="Change"),
    ] = False,
    remove: Annotated[
        Path | None,
        typer.Option(
            help="Remove the ids in this file, one per line, from the index called --name.", metavar="FILE",
            show_default=False, rich_help_panel="Change",
        ),
    ] = None,
    name: Name = None,
    restart: Restart = False,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Build an index over vectors.

    Examples:
    llara index
    llara index my-corpus --backend faiss --spec IVF4096,PQ64
    llara index more --append --name my-index
    """
    if append or remove is not None:
        _refuse_building(ctx, embeddings, append, remove)
        show_facts(session.console, _change(session, embeddings, remove, name))
        return
    from llara_cli.pipelines.index import indexing
    from llara_cli.pipelines.select import newest_passages

    workspace = session.workspace
    artifact = workspace.get("embeddings", embeddings) if embeddings else newest_passages(workspace)
    run = indexing(workspace, artifact, config, name)
    show_facts(session.console, run.plan() if dry_run else run.run(restart=restart))


_BUILDING = {
    "backend": "--backend", "spec": "--spec", "parameters": "--set", "device": "--device", "restart": "--restart",
    "dry_run": "--dry-run",
}  # fmt: skip
"""Parameters that only building an index has, not changing one."""


def _refuse_building(ctx: typer.Context, embeddings: str | None, append: bool, remove: Path | None) -> None:
    """Raise ``UserError`` for flags that contradict each other."""
    if append and remove is not None:
        raise UserError("--append and --remove cannot go together: run one after the other")
    if remove is not None and embeddings is not None:
        raise UserError("--remove takes no embeddings: it changes the index called --name")
    if append and embeddings is None:
        raise UserError("--append needs the name of the embeddings to add")
    sources = {flag: ctx.get_parameter_source(parameter) for parameter, flag in _BUILDING.items()}
    typed = [flag for flag, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if typed:
        raise UserError(f"--append and --remove change a finished index: {', '.join(typed)} cannot be given with them")


def _change(session: Session, embeddings: str | None, remove: Path | None, name: str | None) -> dict[str, Any]:
    """Add vectors to a finished index, or remove some."""
    from llara_cli.pipelines.select import users_own
    from llara_cli.pipelines.update_index import Changing

    workspace = session.workspace
    there = users_own(session.workspace, "indexes") if name is None else []
    if name is None and len(there) != 1:
        raise UserError(f"--name the index to change: there are {', '.join(index.name for index in there) or 'none'}")
    index = workspace.get("indexes", name) if name else there[0]
    changing = Changing(workspace, index)
    if embeddings is not None:
        return changing.append(workspace.get("embeddings", embeddings))
    assert remove is not None
    return changing.remove(remove)
