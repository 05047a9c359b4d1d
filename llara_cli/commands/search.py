"""``llara search``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llara_cli.commands.completion import completer
from llara_cli.commands.messages import with_flags
from llara_cli.commands.render import show_facts, show_hits
from llara_cli.commands.session import Session, yield_standard_output
from llara_cli.core.errors import Terminated, UserError
from llara_cli.retrieval.config import SearchConfig

if TYPE_CHECKING:
    from llara_cli.core.console import Console
    from llara_cli.retrieval.searcher import Searcher


def search(
    session: Session,
    config: SearchConfig,
    query: Annotated[
        str | None, typer.Argument(help="The query.", show_default=False)
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Index of the workspace.", metavar="NAME", show_default="the newest", rich_help_panel="Search",
            autocompletion=completer("indexes"),
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Search every query of this file.", metavar="FILE", show_default=False, rich_help_panel="Many queries"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File for the run of --queries.", metavar="FILE", show_default=False, rich_help_panel="Many queries"
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="Format of the run.", metavar="[trec|jsonl]", rich_help_panel="Many queries",
            autocompletion=completer(choices=("trec", "jsonl")),
        ),
    ] = "trec",
    interactive: Annotated[
        bool,
        typer.Option("--interactive", help="Read queries line by line.", rich_help_panel="Many queries"),
    ] = False,
) -> None:  # fmt: skip
    """Find the passages that answer a query.

    Examples:
    llara search "why do bees dance"
    llara search --queries queries.jsonl --output run.trec -k 1000
    """
    if (query is not None) + (queries is not None) + interactive != 1:
        raise UserError("give one of: a query, --queries FILE with --output FILE, --interactive")
    if (queries is None) != (output is None):
        raise UserError("--queries FILE needs --output FILE, and --output FILE needs --queries FILE")
    yield_standard_output(session.console, output)
    from llara_cli.core.output_files import check_output
    from llara_cli.pipelines.search import search_queries, search_query
    from llara_cli.pipelines.select import newest
    from llara_cli.retrieval.searcher import Searcher

    workspace = session.workspace
    if queries is not None and output is not None:
        check_output(output, workspace.root, [queries])
    artifact = workspace.get("indexes", index) if index else newest(workspace, "indexes", "run llara index first")
    searcher = Searcher(workspace, artifact, config)
    searcher.check(config.top_k)
    session.console.note(f"index: {artifact.name}, model: {searcher.source.name}")
    if queries is not None and output is not None:
        show_facts(session.console, search_queries(searcher, queries, output, config.top_k, format_))
    elif query is not None:
        if not query.strip():
            session.console.warn("the query is empty: searching with the bare prompt")
        show_hits(session.console, search_query(searcher, query, config.top_k))
    else:
        _converse(session.console, searcher, config.top_k)


def _converse(console: Console, searcher: Searcher, top_k: int) -> None:
    """Answer queries line by line until the end of input; empty lines are skipped."""
    _ = searcher.encoder, searcher.backend
    from llara_cli.pipelines.search import search_query

    prompt = "query> " if sys.stdin.isatty() else ""
    while True:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt as error:
            if isinstance(error, Terminated):
                raise
            sys.stderr.write("\n")  # Ctrl-C at the prompt is the normal end: nothing is interrupted
            raise typer.Exit(128 + signal.SIGINT) from error
        if not line:
            return
        if not line.strip():
            continue
        try:
            show_hits(console, search_query(searcher, line.strip(), top_k))
        except UserError as error:  # an error of this line only: the model stays loaded
            console.warn(with_flags(str(error)))
