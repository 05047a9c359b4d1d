"""``llara mine``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render import show_facts
from llara_cli.core.errors import UserError

if TYPE_CHECKING:
    from llara_cli.pipelines.hard_negatives import Finder


def mine(
    ctx: typer.Context,
    train: Annotated[Path, typer.Argument(help="Training rows, or a BEIR folder.", show_default=False)],
    corpus: Annotated[
        Path | None, typer.Option(help="Encode and index these documents, and search them.", show_default=False)
    ] = None,
    index: Annotated[str | None, typer.Option(help="Search this index instead.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Which encodes --corpus; bm25: search by words. (default: the newest)", show_default=False),
    ] = None,
    depth: Annotated[int, typer.Option(help="Hits of a query to draw from.")] = 200,
    per_query: Annotated[int, typer.Option(help="Negatives of a query.")] = 15,
    skip_top: Annotated[int, typer.Option(help="Leave out so many of the best hits that are no positives.")] = 0,
    margin: Annotated[
        float | None,
        typer.Option(help="A negative scores at least this far below the best positive.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the rows here, too. (default: WORKSPACE/mined)", show_default=False)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Total tokens of a passage of --corpus.", show_default=False)
    ] = None,
    query_length: o.QueryLength = None,
    seed: o.Seed = 42,
    name: o.Name = None,
    encoder: o.Encoder = None,
    dtype: o.Dtype = "auto",
    trust_remote_code: o.RemoteCode = False,
    restart: o.Restart = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Find hard negatives for training rows in an index."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    if (corpus is None) == (index is None):
        raise UserError("give one of: --corpus FILE to encode and search, --index NAME")
    if index is not None and model == "bm25":
        raise UserError("--model bm25 searches a --corpus, not an --index")
    if max_length is not None and corpus is None:
        raise UserError("--max-length is for a --corpus that is to be encoded")
    words = model == "bm25"
    if words and (max_length is not None or query_length is not None):
        session.console.note("--max-length and --query-length are for a model: BM25 reads whole texts")
    from llara_cli.commands.select import chosen_encoder, model_to_use
    from llara_cli.data.training_rows import training_files
    from llara_cli.pipelines.encode import EncodeConfig
    from llara_cli.pipelines.hard_negatives import Bm25Finder, DenseFinder
    from llara_cli.pipelines.index import index_corpus
    from llara_cli.pipelines.mine import MineConfig, Mining, check_request
    from llara_cli.pipelines.search import Searching

    settings = MineConfig(depth, per_query, skip_top, margin, seed, query_length)
    settings.check()
    if words:
        settings = replace(settings, query_length=None)
    training_files(train)
    o.yield_standard_output(session.console, output)
    check_request(session.workspace, train, corpus, output, restart=restart)
    finder: Finder
    searching: Searching | None = None
    if corpus is not None and words:
        finder = Bm25Finder(corpus, session.console.note)
    else:
        if index is not None:
            artifact = session.workspace.get("indexes", index)
        else:
            assert corpus is not None
            source = model_to_use(session, model, trust_remote_code)
            encoder = chosen_encoder(session, encoder, source)
            encode = EncodeConfig(max_length=max_length, dtype=dtype, encoder=encoder)
            artifact, model = index_corpus(session.workspace, source, corpus, encode, "mine"), None
        searching = Searching(session.workspace, artifact, query_length, (), model, trust_remote_code)
        searching.check(depth)
        finder = DenseFinder(searching)
    run = Mining(session.workspace, train, finder, settings, name or "", session.console.note)
    result = run.run(output=output, restart=restart)
    if searching is not None:
        searching.warn_of_shortfall(result["rows"])
    show_facts(session.console, result)
