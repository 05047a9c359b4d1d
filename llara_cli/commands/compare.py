"""``llara compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render_tables import show_grids
from llara_cli.core.errors import LlaraError


def compare(
    ctx: typer.Context,
    models: Annotated[
        list[str], typer.Argument(help="Models with results in the workspace; the first is the baseline.")
    ],
    benchmark: Annotated[
        str | None,
        typer.Option(help="Where they were measured. (default: the one that all have)", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="A metric of the results. (default: each set's main one)", show_default=False),
    ] = None,
    test: Annotated[str, typer.Option(help="Paired test: t-test or randomisation.")] = "t-test",
    plot: Annotated[
        Path | None,
        typer.Option(help="Write the bars here, .png or .svg. (default: both, in results/)", show_default=False),
    ] = None,
    format_: o.TableFormat = "table",
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Hold evaluated models against each other, query by query."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    from llara_cli.evaluation.comparison_tables import comparison_csv, comparison_grids
    from llara_cli.evaluation.plots import SUFFIXES, check_chart, draw
    from llara_cli.evaluation.results import comparison_path
    from llara_cli.evaluation.table_formats import check_format
    from llara_cli.pipelines.compare import Comparing

    check_format(format_, as_json=as_json)
    if plot is not None:
        check_chart(plot, session.workspace)
    comparing = Comparing(session.workspace, models, benchmark, metric, test)
    result = comparing.run()
    stem = comparison_path(session.workspace, comparing.benchmark, comparing.names)
    paths = [plot] if plot is not None else [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    try:
        if not draw(result, paths):
            session.console.warn("the plot has boxes for letters that no font here has; Noto Sans CJK has most")
        session.console.note(f"drawn: {', '.join(map(str, paths))}")
    except LlaraError as error:
        if plot is not None:
            raise
        session.console.warn(f"no plot: {error}")  # a workspace that is only read still has figures to show
        paths = []
    result["plots"] = list(map(str, paths))
    show_grids(session.console, result, comparison_grids(result), format_, lambda: comparison_csv(result))
