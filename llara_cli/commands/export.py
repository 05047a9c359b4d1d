"""``llara export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render import show_facts


def export(
    ctx: typer.Context,
    embeddings: Annotated[str, typer.Argument(help="Embeddings of the workspace.", show_default=False)],
    file: Annotated[
        Path, typer.Argument(help="FILE.npy (ids and model in files beside it) or FILE.parquet.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it is there already.")] = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write vectors into one file that other tools read."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    from llara_cli.pipelines.export import Exporting
    from llara_cli.retrieval.vector_store import VectorStore

    store = VectorStore(session.workspace.get("embeddings", embeddings))
    show_facts(session.console, Exporting(session.workspace, store, file, force).run())
