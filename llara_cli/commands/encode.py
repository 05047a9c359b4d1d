"""``llara encode``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llara_cli.commands.flags import DryRun, Name, Restart
from llara_cli.commands.render import show_facts
from llara_cli.commands.session import Session
from llara_cli.core.errors import UserError
from llara_cli.retrieval.config import EncodeConfig

if TYPE_CHECKING:
    from llara_cli.pipelines.import_vectors import Importing


def encode(
    session: Session,
    config: EncodeConfig,
    corpus: Annotated[
        Path | None,
        typer.Argument(help="corpus.jsonl, queries.jsonl, tsv, parquet, or a BEIR folder.", show_default=False),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Import these vectors instead: FILE.npy with FILE.npy.ids.txt, or FILE.parquet (id, vector, ...). "
            "Name their model with --model unless the file records it.",
            metavar="FILE",
            show_default=False,
            rich_help_panel="Texts",
        ),
    ] = None,
    name: Name = None,
    restart: Restart = False,
    dry_run: DryRun = False,
) -> None:
    """Encode a corpus, or queries, into vectors.

    Examples:
    llara encode corpus.jsonl
    llara encode scifact/ --model BAAI/LLARA-passage --store fp16
    llara encode --from vectors.npy --model ./my-model
    """
    if (corpus is None) == (from_ is None):
        raise UserError("give one of: a CORPUS to encode, --from FILE with vectors to import")
    if from_ is not None and config.dim is not None:
        raise UserError("--dim is for vectors that are computed here; those of --from FILE are imported unchanged")
    if from_ is not None:
        run = _importing(session, from_, config, name)
        show_facts(session.console, run.plan() if dry_run else run.run(restart=restart))
        return
    from llara_cli.pipelines.encode import Encoding
    from llara_cli.pipelines.select import chosen_encoder, model_to_use

    assert corpus is not None
    source = model_to_use(session.workspace, config.model, config.trust_remote_code)
    config = replace(config, encoder=chosen_encoder(session.workspace, config.encoder, source))
    encoding = Encoding(session.workspace, source, corpus, config, name or "")
    show_facts(session.console, encoding.plan() if dry_run else encoding.run(restart=restart))


def _importing(session: Session, file: Path, config: EncodeConfig, name: str | None) -> Importing:
    from llara_cli.pipelines.import_vectors import Importing
    from llara_cli.pipelines.select import chosen_encoder, model_of_vectors, recorded_choices
    from llara_cli.retrieval.vector_files import open_vectors

    vectors, workspace = open_vectors(file), session.workspace
    source = model_of_vectors(workspace, vectors, config.model, config.trust_remote_code)
    role, encoder = recorded_choices(workspace, vectors, config.role, config.encoder)
    config = replace(config, role=role, encoder=chosen_encoder(workspace, encoder, source))
    return Importing(workspace, source, vectors, config, name or "")
