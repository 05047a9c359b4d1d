"""``llara evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.show import show_evaluation
from llara_cli.console import UserError


def evaluate(
    ctx: typer.Context,
    benchmark: Annotated[
        str | None, typer.Argument(help="beir, or one folder in BEIR layout.", show_default=False)
    ] = None,
    datasets: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of data sets in BEIR layout.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Judgements to use. (default: test)", show_default=False)] = None,
    model: o.Model = None,
    run: Annotated[
        Path | None, typer.Option(help="Score this TREC run instead of a model.", show_default=False)
    ] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements for --run.", show_default=False)] = None,
    metrics: Annotated[
        str, typer.Option(help="Measures of ir_measures, separated by commas.")
    ] = "nDCG@10,R@100,MRR@10",
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Hits per query.")] = 1000,
    max_length: Annotated[
        int | None,
        typer.Option(help="Total tokens of a passage. (default: 512, or the model's positions)", show_default=False),
    ] = None,
    query_length: o.QueryLength = None,
    index_backend: Annotated[str, typer.Option(help="exact, faiss, hnsw, ...")] = "exact",
    dim: o.Dim = None,
    encoder: o.Encoder = "torch",
    batch_tokens: o.BatchTokens = None,
    drop_identical_ids: Annotated[
        bool, typer.Option("--drop-identical-ids", help="Drop a hit with the query's own id (ArguAna, Quora: always).")
    ] = False,
    dtype: o.Dtype = "auto",
    trust_remote_code: o.RemoteCode = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure a retriever on judged queries."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    if (run is None) != (qrels is None):
        raise UserError("--run RUN and --qrels QRELS go together")
    if (run is None) == (benchmark is None):
        raise UserError("give a benchmark (beir), a folder in BEIR layout, or --run RUN --qrels QRELS")
    from llara_cli.retrieval.evaluation import Benchmark, EvaluateSettings, evaluate_run
    from llara_cli.retrieval.metrics import parse_metrics

    wanted = parse_metrics(metrics)
    if run is not None and qrels is not None:
        show_evaluation(session.console, evaluate_run(run, qrels, wanted), wanted)
        return
    from llara_cli.commands.choose import data_sets, ranker

    assert benchmark is not None
    name, found = data_sets(session, benchmark, datasets, data_root, split)
    settings = EvaluateSettings(
        max_length, query_length, dtype, top_k, wanted, index_backend, encoder, batch_tokens, drop_identical_ids, dim
    )
    chosen = ranker(session, model, trust_remote_code)
    result = Benchmark(session.workspace, session.console, name, chosen, settings).run(found)
    show_evaluation(session.console, result, wanted)
