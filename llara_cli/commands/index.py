"""``llara index``."""

from __future__ import annotations

from typing import Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.show import show_facts


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
    from llara_cli import registry
    from llara_cli.commands.choose import newest_passages
    from llara_cli.protocols import IndexOptions
    from llara_cli.retrieval.indexing import Indexing, parse_parameters

    artifact = session.workspace.get("embeddings", embeddings) if embeddings else newest_passages(session)
    known = registry.load("index", backend)
    accepted = {**known.build_parameters, **known.search_parameters}
    settings = IndexOptions(spec, parse_parameters(set_ or [], accepted, backend), device)
    run = Indexing(session.workspace, session.console, artifact, backend, settings, name or "")
    show_facts(session.console, run.plan() if dry_run else run.run(restart=restart))
