"""``llara finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.show import show_plan, show_training


def finetune(
    ctx: typer.Context,
    train: Annotated[
        list[Path],
        typer.Argument(
            help="Rows with query and passages (jsonl, csv, parquet), or a BEIR folder.", show_default=False
        ),
    ],
    model: o.Model = None,
    recipe: o.Recipe = None,
    name: o.Name = None,
    backend: Annotated[str, typer.Option(help="Training backend: lora, full, ...")] = "lora",
    negatives: Annotated[int, typer.Option(help="Hard negatives per query.")] = 15,
    temperature: Annotated[float, typer.Option(help="Of the softmax over cosines.")] = 0.01,
    query_length: Annotated[int, typer.Option(help="Total tokens of a query, prompt included.")] = 64,
    passage_length: Annotated[int, typer.Option(help="Total tokens of a passage, prompt included.")] = 160,
    in_batch_negatives: Annotated[
        bool,
        typer.Option("--in-batch-negatives/--no-in-batch-negatives", help="Other rows' passages are negatives too."),
    ] = True,
    mask_false_negatives: Annotated[
        bool,
        typer.Option(
            "--mask-false-negatives/--no-mask-false-negatives", help="A copy of the query's positive is no negative."
        ),
    ] = True,
    chunk_size: Annotated[
        int | None, typer.Option(help="Texts of one forward (GradCache).", show_default=False)
    ] = None,
    batch_size: o.BatchSize = None,
    micro_batch_tokens: o.MicroBatchTokens = None,
    max_steps: o.MaxSteps = None,
    epochs: o.Epochs = None,
    learning_rate: o.LearningRate = None,
    warmup_ratio: o.WarmupRatio = 0.1,
    weight_decay: o.WeightDecay = 0.0,
    max_grad_norm: o.MaxGradNorm = 1.0,
    seed: o.Seed = 42,
    optimizer: o.Optimizer = "adamw",
    weights: o.Weights = "fp32",
    gradient_checkpointing: o.GradientCheckpointing = False,
    compile: o.Compile = False,
    save_every: o.SaveEvery = None,
    track: o.Track = None,
    lora_rank: o.LoraRank = 64,
    lora_alpha: o.LoraAlpha = 16,
    lora_dropout: o.LoraDropout = 0.1,
    merge: o.Merge = True,
    dtype: o.Dtype = "auto",
    trust_remote_code: o.RemoteCode = False,
    restart: o.Restart = False,
    dry_run: o.DryRun = False,
    workspace: o.Workspace_ = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Train a retriever on queries with their passages (InfoNCE)."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    from llara_cli.commands.choose import model_to_finetune
    from llara_cli.settings import AdapterSettings, FinetuneSettings, OptimiserSettings
    from llara_cli.training.finetune import Finetuning

    optimiser = OptimiserSettings(
        optimizer, learning_rate, warmup_ratio, weight_decay, max_grad_norm, batch_size, micro_batch_tokens,
        max_steps, epochs, seed, gradient_checkpointing, save_every, weights, compile, tuple(track or ()),
    )  # fmt: skip
    settings = FinetuneSettings(
        backend, recipe, query_length, passage_length, negatives, temperature, chunk_size, in_batch_negatives,
        mask_false_negatives, dtype, AdapterSettings(lora_rank, lora_alpha, lora_dropout, merge), optimiser,
    )  # fmt: skip
    source = model_to_finetune(session, model, trust_remote_code)
    run = Finetuning.of(session.workspace, session.console, source, train, settings, name)
    if dry_run:
        show_plan(session.console, run.name, run.plan())
    else:
        show_training(session.console, run.run(restart=restart))
