"""``llara evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llara_cli.commands.completion import completer
from llara_cli.commands.flags import TableFormat
from llara_cli.commands.render import show_tables
from llara_cli.commands.session import Session
from llara_cli.core.errors import UserError
from llara_cli.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from llara_cli.evaluation.datasets import Consent


def evaluate(
    session: Session,
    config: EvaluateConfig,
    benchmark: Annotated[
        str | None,
        typer.Argument(
            help="beir, msmarco, trec-dl, or one folder in BEIR layout.", show_default=False,
            autocompletion=completer("benchmarks"),
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Evaluate a run (TREC or .jsonl), or a folder of runs by data set.", metavar="PATH",
            show_default=False, rich_help_panel="Run",
        ),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(
            help="Judgments for --run, if no benchmark is given.", metavar="FILE", show_default=False,
            rich_help_panel="Run",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run in results and tables.", metavar="NAME", show_default="the file's name",
            rich_help_panel="Run",
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Download missing data sets without asking.", rich_help_panel="Data"),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Evaluate again, even if results exist.", rich_help_panel="Run")
    ] = False,
    format_: TableFormat = "table",
) -> None:  # fmt: skip
    """Evaluate a retriever on a benchmark, or on a data set of your own.

    Examples:
    llara evaluate beir --datasets scifact,nfcorpus --data-root ~/beir
    llara evaluate scifact/ --model bm25
    llara evaluate --run run.trec --qrels qrels/test.tsv
    """
    _check_flags(benchmark, run, qrels, config.model, name)
    from llara_cli.evaluation.leaderboard import leaderboard
    from llara_cli.evaluation.result_tables import leaderboard_table, result_table
    from llara_cli.evaluation.table_formats import check_format, figures_csv
    from llara_cli.pipelines.evaluate import evaluate_benchmark, evaluate_run

    check_format(format_, as_json=session.console.as_json)
    if run is not None and qrels is not None:
        result = evaluate_run(run, qrels, config.metrics, name)
        show_tables(session.console, result, [result_table(result)], format_, lambda: figures_csv(result, []))
        return
    assert benchmark is not None
    result, splits = evaluate_benchmark(
        session.workspace, benchmark, config, run=run, name=name, restart=restart, consent=_consent(yes)
    )
    beside = leaderboard(session.workspace, result, splits)
    tables = [table for table in (result_table(result), leaderboard_table(result, beside)) if table is not None]
    show_tables(session.console, result, tables, format_, lambda: figures_csv(result, beside))


def _check_flags(
    benchmark: str | None, run: Path | None, qrels: Path | None, model: str | None, name: str | None
) -> None:
    """Raise ``UserError`` for flags that do not go together, and for a ``--name`` that cannot be printed."""
    if (qrels is not None and run is None) or (run is not None and qrels is None and benchmark is None):
        raise UserError("--run RUN needs --qrels QRELS or a benchmark, and --qrels QRELS needs --run RUN")
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


def _consent(yes: bool) -> Consent:
    """Whether to download: ``--yes``, or what the user at the terminal says."""

    def ask(question: str) -> bool:
        return yes or (sys.stdin.isatty() and typer.confirm(f"{question[:1].upper()}{question[1:]}?", err=True))

    return ask
