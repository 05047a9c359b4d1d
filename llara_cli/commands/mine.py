"""``llara mine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llara_cli.commands.completion import completer
from llara_cli.commands.flags import Name, Restart
from llara_cli.commands.render import show_facts
from llara_cli.commands.session import Session, yield_standard_output
from llara_cli.retrieval.config import MineConfig


def mine(
    session: Session,
    train: Annotated[Path, typer.Argument(help="Training rows, or a BEIR folder.", show_default=False)],
    config: MineConfig,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Encode and index these documents, and search them.", metavar="PATH", show_default=False,
            rich_help_panel="Texts",
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Search this index instead.", metavar="NAME", show_default=False, rich_help_panel="Texts",
            autocompletion=completer("indexes"),
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Also write the rows to this file.", metavar="FILE", show_default="WORKSPACE/mined only",
            rich_help_panel="Run",
        ),
    ] = None,
    name: Name = None,
    restart: Restart = False,
) -> None:  # fmt: skip
    """Mine hard negatives for training rows.

    Examples:
    llara mine train.jsonl --corpus corpus.jsonl --output train.mined.jsonl
    llara mine scifact/ --corpus scifact/ --model bm25 --skip-top 5
    """
    yield_standard_output(session.console, output)
    from llara_cli.pipelines.mine import mining

    run = mining(
        session.workspace, train, config, corpus=corpus, index=index, output=output, name=name, restart=restart
    )
    show_facts(session.console, run.run(output=output, restart=restart))
