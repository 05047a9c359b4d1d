"""``llara pretrain``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render import show_plan, show_training


def pretrain(
    ctx: typer.Context,
    corpus: Annotated[list[str], typer.Argument(help="Files, folders, or hf:NAME/CONFIG.", show_default=False)],
    model: o.BaseModel = None,
    recipe: o.Recipe = None,
    name: o.Name = None,
    backend: Annotated[str, typer.Option(help="Training backend: full, lora, ...")] = "full",
    max_length: Annotated[
        int | None, typer.Option(help="Total tokens of a sequence, both prompts included.", show_default=False)
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="all or unique tokens of a target text. (default: the recipe's)", show_default=False),
    ] = None,
    drop_stop_words: Annotated[
        bool | None,
        typer.Option(
            "--drop-stop-words/--keep-stop-words", help="In target texts. (default: the recipe's)", show_default=False
        ),
    ] = None,
    layout: Annotated[str, typer.Option(help="How texts share forwards: auto, packed or bucketed.")] = "auto",
    preset: o.Preset = None,
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
    gradient_checkpointing: o.GradientCheckpointing = None,
    compile: o.Compile = False,
    attention: o.Attention = "auto",
    compute: o.Compute = "auto",
    save_every: o.SaveEvery = None,
    track: o.Track = None,
    lora_rank: o.LoraRank = 64,
    lora_alpha: o.LoraAlpha = 16,
    lora_dropout: o.LoraDropout = 0.1,
    lora_targets: o.LoraTargets = None,
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
    """Adapt a language model to dense retrieval on plain text (EBAE + EBAR)."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    from llara_cli.commands.select import model_to_pretrain
    from llara_cli.core.config import LoraConfig, OptimizerConfig, PretrainConfig, apply_preset
    from llara_cli.pipelines.pretrain import Pretraining

    optimizer_config = OptimizerConfig(
        optimizer, learning_rate, warmup_ratio, weight_decay, max_grad_norm, batch_size, micro_batch_tokens,
        max_steps, epochs, seed, gradient_checkpointing, save_every, weights, compile, tuple(track or ()),
        attention, compute,
    )  # fmt: skip
    adapter = LoraConfig(lora_rank, lora_alpha, lora_dropout, merge, o.parse_targets(lora_targets))
    chosen: Any = targets
    settings = PretrainConfig(
        backend, recipe, max_length, dtype, chosen, drop_stop_words, layout, adapter, optimizer_config
    )
    source = model_to_pretrain(session, model, trust_remote_code)
    run = Pretraining.of(session.workspace, source, corpus, apply_preset(settings, preset), name)
    if dry_run:
        show_plan(session.console, run.name, run.plan())
    else:
        show_training(session.console, run.run(restart=restart))
