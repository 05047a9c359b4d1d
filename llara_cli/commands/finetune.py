"""``llara finetune``."""

from __future__ import annotations

from typing import Annotated

import typer

from llara_cli.commands.flags import DryRun, Name, Restart
from llara_cli.commands.llara_toml import default_model
from llara_cli.commands.render import show_plan, show_training
from llara_cli.commands.session import Session
from llara_cli.training.config import FinetuneConfig


def finetune(
    session: Session,
    train: Annotated[
        list[str],
        typer.Argument(
            help="Rows with query and passages (jsonl, csv, parquet), or a BEIR folder; FILE:2 twice per epoch.",
            show_default=False,
        ),
    ],
    config: FinetuneConfig,
    name: Name = None,
    restart: Restart = False,
    dry_run: DryRun = False,
) -> None:
    """Train a retriever on queries with their passages (InfoNCE).

    Examples:
    llara finetune train.jsonl --dev scifact/
    llara finetune msmarco/ --backend full --batch-size 128 --negatives 7
    llara finetune train.jsonl --rounds 2 --corpus corpus.jsonl
    """
    from llara_cli.pipelines.rounds import finetuning
    from llara_cli.pipelines.select import model_to_finetune

    workspace = session.workspace
    source = model_to_finetune(workspace, config.model, config.trust_remote_code, default_model(workspace.root))
    job = finetuning(workspace, source, train, config, name)
    if dry_run:
        show_plan(session.console, job.name, job.plan())
    else:
        show_training(session.console, job.run(restart=restart))
