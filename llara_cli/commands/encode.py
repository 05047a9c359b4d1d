"""``llara encode``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render import show_facts
from llara_cli.core.errors import UserError

if TYPE_CHECKING:
    from llara_cli.pipelines.import_vectors import Importing


def encode(
    ctx: typer.Context,
    corpus: Annotated[
        Path | None,
        typer.Argument(help="corpus.jsonl, queries.jsonl, tsv, parquet, or a BEIR folder.", show_default=False),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Take these vectors in instead: FILE.npy with FILE.npy.ids.txt, or FILE.parquet (id, vector, ...). "
            "Name their model with --model unless the file records it.",
            show_default=False,
        ),
    ] = None,
    model: o.Model = None,
    name: o.Name = None,
    role: Annotated[
        str | None,
        typer.Option(
            "--as", help="passage or query. (default: passage, or what --from FILE records)", show_default=False
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Total tokens, prompt included. (default: 512, or the model's positions)", show_default=False
        ),
    ] = None,
    store: Annotated[str, typer.Option(help="fp32 or fp16 vectors on disk.")] = "fp32",
    batch_tokens: o.BatchTokens = None,
    shard_size: Annotated[int, typer.Option(help="Texts of one shard: what a kill can cost.")] = 4096,
    layout: Annotated[str, typer.Option(help="How texts share forwards: auto, packed or bucketed.")] = "auto",
    attention: o.Attention = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the layers.")] = False,
    dim: o.Dim = None,
    encoder: o.Encoder = None,
    dtype: o.Dtype = "auto",
    trust_remote_code: o.RemoteCode = False,
    restart: o.Restart = False,
    dry_run: o.DryRun = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Turn a collection into vectors."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    if (corpus is None) == (from_ is None):
        raise UserError("give one of: a CORPUS to encode, --from FILE with vectors to take in")
    if from_ is not None and dim is not None:
        raise UserError("--dim is for vectors that are computed here; those of --from FILE are taken as they are")
    from llara_cli.commands.select import chosen_encoder, model_of_vectors, model_to_use, recorded_choices
    from llara_cli.pipelines.encode import EncodeConfig, Encoding
    from llara_cli.retrieval.vector_files import open_vectors

    file = open_vectors(from_) if from_ is not None else None
    if file is not None:
        source = model_of_vectors(session, file, model, trust_remote_code)
        role, encoder = recorded_choices(session, file, role, encoder)
    else:
        source = model_to_use(session, model, trust_remote_code)
    encoder = chosen_encoder(session, encoder, source)
    chosen: Any = "passage" if role is None else role
    settings = EncodeConfig(
        chosen, max_length, dtype, store, encoder, batch_tokens, shard_size, layout, dim, attention, compile
    )
    run: Encoding | Importing
    if corpus is not None:
        run = Encoding(session.workspace, source, corpus, settings, name or "")
    elif file is not None:
        from llara_cli.pipelines.import_vectors import Importing

        run = Importing(session.workspace, source, file, settings, name or "")
    show_facts(session.console, run.plan() if dry_run else run.run(restart=restart))
