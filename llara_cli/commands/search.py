"""``llara search``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render import show_facts, show_hits
from llara_cli.core.errors import Terminated, UserError

if TYPE_CHECKING:
    from llara_cli.core.console import Console
    from llara_cli.pipelines.search import Searching


def search(
    ctx: typer.Context,
    query: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    index: Annotated[
        str | None, typer.Option(help="Index of the workspace. (default: the newest)", show_default=False)
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Hits per query.")] = 10,
    queries: Annotated[Path | None, typer.Option(help="Search every query of this file.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Where the run of --queries goes.", show_default=False)] = None,
    format_: Annotated[str, typer.Option("--format", help="Of the run: trec or jsonl.")] = "trec",
    query_length: o.QueryLength = None,
    set_: o.Set = None,
    device: Annotated[str, typer.Option(help="Where the index is searched: cpu or cuda.")] = "cpu",
    model: Annotated[str | None, typer.Option(help="Refuse an index of any other model.", show_default=False)] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="Ask for queries, the model kept warm.")] = False,
    trust_remote_code: o.RemoteCode = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Find the passages that answer a query."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    if (query is not None) + (queries is not None) + interactive != 1:
        raise UserError("give one of: a query, --queries FILE with --output FILE, --interactive")
    if (queries is None) != (output is None):
        raise UserError("--queries FILE and --output FILE go together")
    o.yield_standard_output(session.console, output)
    from llara_cli.commands.select import newest
    from llara_cli.core.output_files import check_output
    from llara_cli.pipelines.search import Searching

    if queries is not None and output is not None:
        check_output(output, session.workspace.root, [queries])
    artifact = session.workspace.get("indexes", index) if index else newest(session, "indexes", "run llara index first")
    searching = Searching(session.workspace, artifact, query_length, set_ or (), model, trust_remote_code, device)
    searching.check(top_k)
    session.console.note(f"index: {artifact.name}, model: {searching.source.name}")
    if queries is not None and output is not None:
        show_facts(session.console, searching.queries(queries, output, top_k, format_))
    elif query is not None:
        if not query.strip():
            session.console.warn("the query is empty: the bare prompt is searched for")
        show_hits(session.console, searching.query(query, top_k))
    else:
        _converse(session.console, searching, top_k)


def _converse(console: Console, searching: Searching, top_k: int) -> None:
    """Answer queries line by line until the end of input; an empty line is passed over."""
    _ = searching.encoder, searching.backend
    prompt = "query> " if sys.stdin.isatty() else ""
    while True:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt as error:
            if isinstance(error, Terminated):
                raise
            sys.stderr.write("\n")  # at the prompt, Ctrl-C says that it is over: nothing was interrupted
            raise typer.Exit(128 + signal.SIGINT) from error
        if not line:
            return
        if not line.strip():
            continue
        try:
            show_hits(console, searching.query(line.strip(), top_k))
        except UserError as error:  # of this line: the model stays warm
            console.warn(str(error))
