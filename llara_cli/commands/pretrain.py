"""``llara pretrain``."""

from __future__ import annotations

from typing import Annotated

import typer

from llara_cli.commands.flags import DryRun, Name, Restart
from llara_cli.commands.llara_toml import default_model
from llara_cli.commands.render import show_plan, show_training
from llara_cli.commands.session import Session
from llara_cli.training.config import PretrainConfig


def pretrain(
    session: Session,
    corpus: Annotated[list[str], typer.Argument(help="Files, folders, or hf:NAME/CONFIG.", show_default=False)],
    config: PretrainConfig,
    name: Name = None,
    restart: Restart = False,
    dry_run: DryRun = False,
) -> None:
    """Adapt a language model to dense retrieval on plain text (EBAE + EBAR).

    Examples:
    llara pretrain wiki/
    llara pretrain wiki/ --model Qwen/Qwen2.5-0.5B --max-steps 1000 --dry-run
    """
    from llara_cli.pipelines.pretrain import pretraining
    from llara_cli.pipelines.select import model_to_pretrain

    workspace = session.workspace
    source = model_to_pretrain(workspace, config.model, config.trust_remote_code, default_model(workspace.root))
    run = pretraining(workspace, source, corpus, config, name)
    if dry_run:
        show_plan(session.console, run.name, run.plan())
    else:
        show_training(session.console, run.run(restart=restart))
