"""``llara export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llara_cli.commands.completion import completer
from llara_cli.commands.render import show_facts
from llara_cli.commands.session import Session


def export(
    session: Session,
    embeddings: Annotated[
        str,
        typer.Argument(
            help="Embeddings of the workspace.", show_default=False,
            autocompletion=completer("embeddings"),
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            help="FILE.npy (ids and model in files beside it) or FILE.parquet.", show_default=False
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:  # fmt: skip
    """Write vectors to a file that other tools read.

    Examples:
    llara export my-corpus vectors.npy
    """
    from llara_cli.pipelines.export import Exporting
    from llara_cli.retrieval.vector_store import VectorStore

    store = VectorStore(session.workspace.get("embeddings", embeddings))
    show_facts(session.console, Exporting(session.workspace, store, file, force).run())
