"""``llara index``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render import show_facts
from llara_cli.core.errors import UserError


def index(
    ctx: typer.Context,
    embeddings: Annotated[
        str | None,
        typer.Argument(help="Embeddings of the workspace. (default: the newest of passages)", show_default=False),
    ] = None,
    backend: Annotated[str, typer.Option(help="exact, faiss, hnsw, ...")] = "exact",
    spec: Annotated[
        str | None, typer.Option(help='FAISS factory string: "Flat", "IVF4096,PQ64", ...', show_default=False)
    ] = None,
    set_: o.Set = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    append: Annotated[bool, typer.Option("--append", help="Add the embeddings to the index called --name.")] = False,
    remove: Annotated[
        Path | None,
        typer.Option(help="Take the ids in this file, one a line, out of the index called --name.", show_default=False),
    ] = None,
    name: o.Name = None,
    restart: o.Restart = False,
    dry_run: o.DryRun = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Build an index over vectors."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    if append or remove is not None:
        _refuse_building(ctx, embeddings, append, remove)
        show_facts(session.console, _change(session, embeddings, remove, name))
        return
    from llara_cli.commands.select import newest_passages
    from llara_cli.core import registry
    from llara_cli.core.protocols import IndexOptions
    from llara_cli.pipelines.index import Indexing, parse_parameters

    artifact = session.workspace.get("embeddings", embeddings) if embeddings else newest_passages(session)
    known = registry.load("index", backend)
    accepted = {**known.build_parameters, **known.search_parameters}
    settings = IndexOptions(spec, parse_parameters(set_ or [], accepted, backend), device)
    run = Indexing(session.workspace, artifact, backend, settings, name or "")
    show_facts(session.console, run.plan() if dry_run else run.run(restart=restart))


_BUILDING = {
    "backend": "--backend", "spec": "--spec", "set_": "--set", "device": "--device", "restart": "--restart",
    "dry_run": "--dry-run",
}  # fmt: skip
"""Parameters of a build, which a change of a finished index has not."""


def _refuse_building(ctx: typer.Context, embeddings: str | None, append: bool, remove: Path | None) -> None:
    """Raise ``UserError`` for flags that contradict each other."""
    if append and remove is not None:
        raise UserError("--append and --remove are two commands: run one after the other")
    if remove is not None and embeddings is not None:
        raise UserError("--remove takes no embeddings: it changes the index called --name")
    if append and embeddings is None:
        raise UserError("--append needs the name of the embeddings to add")
    sources = {flag: ctx.get_parameter_source(parameter) for parameter, flag in _BUILDING.items()}
    typed = [flag for flag, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if typed:
        raise UserError(f"--append and --remove change a finished index: {', '.join(typed)} belongs to building one")


def _change(session: o.Session, embeddings: str | None, remove: Path | None, name: str | None) -> dict[str, Any]:
    """Add to a finished index, or remove from it."""
    from llara_cli.commands.select import users_own
    from llara_cli.pipelines.update_index import Changing

    workspace = session.workspace
    there = users_own(session, "indexes") if name is None else []
    if name is None and len(there) != 1:
        raise UserError(f"--name the index to change: there are {', '.join(index.name for index in there) or 'none'}")
    index = workspace.get("indexes", name) if name else there[0]
    changing = Changing(workspace, index)
    if embeddings is not None:
        return changing.append(workspace.get("embeddings", embeddings))
    assert remove is not None
    return changing.remove(remove)
