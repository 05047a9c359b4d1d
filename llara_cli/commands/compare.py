"""``llara compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llara_cli.commands.completion import completer
from llara_cli.commands.flags import TableFormat
from llara_cli.commands.render import show_tables
from llara_cli.commands.session import Session
from llara_cli.core.errors import LlaraError
from llara_cli.evaluation.config import CompareConfig


def compare(
    session: Session,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Models with results in the workspace; the first is the baseline.",
            show_default=False, autocompletion=completer("results"),
        ),
    ],
    config: CompareConfig,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw a bar chart into this file, .png or .svg.", metavar="FILE", show_default="both, in results/"
        ),
    ] = None,
    format_: TableFormat = "table",
) -> None:  # fmt: skip
    """Compare evaluated models, query by query.

    Examples:
    llara compare bm25 my-model
    llara compare base tuned --benchmark beir --metric R@100 --format latex
    """
    from llara_cli.evaluation.comparison_tables import comparison_csv, comparison_tables
    from llara_cli.evaluation.plots import SUFFIXES, check_chart, draw
    from llara_cli.evaluation.results import comparison_path
    from llara_cli.evaluation.table_formats import check_format
    from llara_cli.pipelines.compare import Comparing

    workspace = session.workspace
    check_format(format_, as_json=session.console.as_json)
    if plot is not None:
        check_chart(plot, workspace)
    comparing = Comparing(workspace, models, config.benchmark, config.metric, config.test)
    result = comparing.run()
    stem = comparison_path(workspace, comparing.benchmark, comparing.names)
    paths = [plot] if plot is not None else [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    try:
        if not draw(result, paths):
            session.console.warn("the plot has boxes for letters that are in no installed font; Noto Sans CJK has most")
        session.console.note(f"drawn: {', '.join(map(str, paths))}")
    except LlaraError as error:
        if plot is not None:
            raise
        session.console.warn(f"no plot: {error}")  # a workspace that is only read still has figures to show
        paths = []
    result["plots"] = list(map(str, paths))
    show_tables(session.console, result, comparison_tables(result), format_, lambda: comparison_csv(result))
