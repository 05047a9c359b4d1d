"""``llara evaluate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render_tables import show_grids
from llara_cli.core.errors import UserError

if TYPE_CHECKING:
    from llara_cli.evaluation.datasets import Consent, Found
    from llara_cli.pipelines.evaluate import EvaluateConfig
    from llara_cli.pipelines.retrievers import Dense, Retriever


def evaluate(
    ctx: typer.Context,
    benchmark: Annotated[
        str | None,
        typer.Argument(help="beir, msmarco, trec-dl, or one folder in BEIR layout.", show_default=False),
    ] = None,
    datasets: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder of data sets in BEIR layout; looked in before anything else.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Download what is not there without asking.")] = False,
    split: Annotated[
        str | None, typer.Option(help="Judgements to use. (default: test; MS MARCO: dev)", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A workspace name, a folder, a hub id, a .gguf file, or bm25. (default: the newest)",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Measure this run (TREC or .jsonl; a folder: one a data set).", show_default=False),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements for --run, where there is no benchmark.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the run is called in results and tables.", show_default=False)
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Measures of ir_measures, separated by commas. (default: those customary for each data set)",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Hits per query.")] = 1000,
    max_length: Annotated[
        int | None,
        typer.Option(help="Total tokens of a passage. (default: 512, or the model's positions)", show_default=False),
    ] = None,
    query_length: o.QueryLength = None,
    index_backend: Annotated[str, typer.Option(help="exact, faiss, hnsw, ...")] = "exact",
    dim: o.Dim = None,
    encoder: o.Encoder = None,
    batch_tokens: o.BatchTokens = None,
    attention: o.Attention = "auto",
    drop_identical_ids: Annotated[
        bool, typer.Option("--drop-identical-ids", help="Drop a hit with the query's own id (ArguAna, Quora: always).")
    ] = False,
    dtype: o.Dtype = "auto",
    format_: o.TableFormat = "table",
    restart: Annotated[bool, typer.Option("--restart", help="Measure again what has been measured.")] = False,
    trust_remote_code: o.RemoteCode = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure a retriever on judged queries."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    _check_flags(benchmark, run, qrels, model, name)
    from llara_cli.evaluation.metric_names import parse_metrics
    from llara_cli.evaluation.metrics import DEFAULT_METRICS
    from llara_cli.evaluation.table_formats import check_format
    from llara_cli.pipelines.evaluate import EvaluateConfig
    from llara_cli.pipelines.retrievers import Dense

    check_format(format_, as_json=as_json)
    wanted = parse_metrics(metrics) if metrics is not None else None
    if run is not None and qrels is not None:
        _measure_run(session, run, qrels, name, wanted or DEFAULT_METRICS, format_)
        return
    assert benchmark is not None
    _check_known(benchmark)
    asked = _Asked(benchmark, datasets, data_root, split, yes)
    dense = Dense(
        max_length, query_length, dtype, index_backend, batch_tokens=batch_tokens, dim=dim, attention=attention
    )
    retriever = _retriever(session, model, run, name, dense, encoder, trust_remote_code)
    _measure(session, asked, retriever, EvaluateConfig(top_k, wanted, drop_identical_ids, restart), format_)


@dataclass(frozen=True)
class _Asked:
    """The flags that say what to measure on."""

    benchmark: str
    datasets: str
    root: Path | None
    split: str | None
    yes: bool


def _check_flags(
    benchmark: str | None, run: Path | None, qrels: Path | None, model: str | None, name: str | None
) -> None:
    """Raise ``UserError`` for flags that do not go together, and for a ``--name`` that cannot be shown."""
    if (qrels is not None and run is None) or (run is not None and qrels is None and benchmark is None):
        raise UserError("--run RUN and --qrels QRELS go together; or name a benchmark with --run")
    if qrels is not None and benchmark is not None:
        raise UserError("a benchmark has its own judgments: leave --qrels out, or the benchmark")
    if benchmark is None and run is None:
        raise UserError(
            "give a benchmark (beir, msmarco, trec-dl), a folder in BEIR layout, or --run RUN --qrels QRELS"
        )
    if run is not None and model is not None:
        raise UserError("--run and --model exclude each other")
    if name is not None and not (name.strip() and name.isprintable()):
        raise UserError(f"--name {name!r}: use letters that can be printed")


def _check_known(benchmark: str) -> None:
    """Raise ``UserError`` for what is neither a benchmark nor a folder."""
    from llara_cli.evaluation.benchmarks import BENCHMARKS

    if benchmark not in BENCHMARKS and not Path(benchmark).is_dir():
        known = ", ".join(BENCHMARKS)
        raise UserError(f"no benchmark or folder {benchmark!r}: known benchmarks are {known}")


def _measure(session: o.Session, asked: _Asked, retriever: Retriever, settings: EvaluateConfig, format_: str) -> None:
    from llara_cli.evaluation.leaderboard import leaderboard
    from llara_cli.evaluation.result_tables import beside_grid, own_grid
    from llara_cli.evaluation.table_formats import figures_csv
    from llara_cli.pipelines.evaluate import Evaluating

    # before anything is downloaded
    settings.check()
    retriever.check()
    name, found = _found(session, asked)
    result = Evaluating(session.workspace, name, retriever, settings).run(found)
    beside = leaderboard(session.workspace, result, {task.group: data.split for task, data in found})
    grids = [grid for grid in (own_grid(result), beside_grid(result, beside)) if grid is not None]
    show_grids(session.console, result, grids, format_, lambda: figures_csv(result, beside))


def _measure_run(
    session: o.Session, run: Path, qrels: Path, name: str | None, metrics: tuple[str, ...], format_: str
) -> None:
    from llara_cli.evaluation.result_tables import own_grid
    from llara_cli.evaluation.table_formats import figures_csv
    from llara_cli.pipelines.evaluate import evaluate_run

    result = evaluate_run(run, qrels, metrics, name)
    show_grids(session.console, result, [own_grid(result)], format_, lambda: figures_csv(result, []))


def _retriever(
    session: o.Session,
    model: str | None,
    run: Path | None,
    name: str | None,
    dense: Dense,
    encoder: str | None,
    remote_code: bool,
) -> Retriever:
    """A run, BM25, or a model."""
    from llara_cli.commands.select import chosen_encoder, model_to_use
    from llara_cli.pipelines.retrievers import Bm25Retriever, DenseRetriever, RunRetriever

    if (run is not None or model == "bm25") and (dense.max_length or dense.query_length or dense.dim):
        session.console.note("--max-length, --query-length and --dim are for a model: BM25 reads whole texts")
    if run is not None:
        return RunRetriever(run, name or "")
    if name is not None:
        raise UserError("--name is for --run: a model goes by its own name")
    if model == "bm25":
        return Bm25Retriever(session.workspace.reporter)
    source = model_to_use(session, model, remote_code)
    dense = replace(dense, encoder=chosen_encoder(session, encoder, source))
    return DenseRetriever(session.workspace, source, dense)


def _found(session: o.Session, asked: _Asked) -> tuple[str, Found]:
    """The benchmark's name, its data sets and what they are."""
    from llara_cli.data.beir import BeirFolder
    from llara_cli.data.eval_dataset import EvalDataset
    from llara_cli.evaluation.benchmarks import BENCHMARKS, own_task
    from llara_cli.evaluation.datasets import Finder

    if asked.benchmark in BENCHMARKS:
        finder = Finder(session.workspace, asked.root, asked.split, _consent(asked.yes))
        return asked.benchmark, finder.find(BENCHMARKS[asked.benchmark], asked.datasets)
    data = EvalDataset(BeirFolder(Path(asked.benchmark)), asked.split or "test")
    return data.name, [(own_task(data.name, data.split), data)]


def _consent(yes: bool) -> Consent:
    """Whether to download: ``--yes``, or what the user at the terminal says."""

    def ask(question: str) -> bool:
        return yes or (sys.stdin.isatty() and typer.confirm(f"{question[:1].upper()}{question[1:]}?", err=True))

    return ask
