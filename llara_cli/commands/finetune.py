"""``llara finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llara_cli.commands import options as o
from llara_cli.commands.render import show_plan, show_training
from llara_cli.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llara_cli.evaluation.dev_set import DevSet
    from llara_cli.pipelines.finetune import Finetuning, TrainingSet


def finetune(
    ctx: typer.Context,
    train: Annotated[
        list[str],
        typer.Argument(
            help="Rows with query and passages (jsonl, csv, parquet), or a BEIR folder; FILE:2 goes through it twice.",
            show_default=False,
        ),
    ],
    model: o.ModelToFinetune = None,
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
    mask_margin: Annotated[
        float | None,
        typer.Option(
            help="Nor is a passage that scores more than this above the positive (Qwen3: 0.1).", show_default=False
        ),
    ] = None,
    distillation: Annotated[
        float, typer.Option(help="Share of the loss that follows pos_scores and neg_scores, 0 to 1.")
    ] = 0.0,
    dims: Annotated[
        str | None,
        typer.Option(
            help="Widths the vectors may be cut to, as 768,256,64 (Matryoshka). (default: the model's own)",
            show_default=False,
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Same prompt for queries and passages (duplicate questions). (default: the model's own)",
            show_default=False,
        ),
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Texts of one forward (GradCache).", show_default=False)
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(help="Keep the weights best on this BEIR folder's dev split (nDCG@10).", show_default=False),
    ] = None,
    dev_every: Annotated[
        int | None, typer.Option(help="Steps between looks at --dev. (default: ten looks)", show_default=False)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many looks without a better one.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Fine-tune, mine --corpus for harder negatives, again.")] = 1,
    corpus: Annotated[Path | None, typer.Option(help="Documents for --rounds.", show_default=False)] = None,
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
    """Train a retriever on queries with their passages (InfoNCE)."""
    session = o.open_session(ctx, workspace, as_json, quiet, verbose)
    if dev is None and (dev_every or patience):
        raise UserError("--dev-every and --patience belong to --dev FOLDER")
    from llara_cli.commands.select import model_to_finetune
    from llara_cli.core.config import FinetuneConfig, LoraConfig, OptimizerConfig
    from llara_cli.pipelines.finetune import Finetuning, TrainingSet
    from llara_cli.pipelines.rounds import check_names, check_rounds, run_rounds

    optimizer_config = OptimizerConfig(
        optimizer, learning_rate, warmup_ratio, weight_decay, max_grad_norm, batch_size, micro_batch_tokens,
        max_steps, epochs, seed, gradient_checkpointing, save_every, weights, compile, tuple(track or ()),
        attention, compute,
    )  # fmt: skip
    settings = FinetuneConfig(
        backend, recipe, query_length, passage_length, negatives, temperature, chunk_size, in_batch_negatives,
        mask_false_negatives, mask_margin, distillation, o.parse_dims(dims), symmetric, (),
        dev_every, patience, dtype,
        LoraConfig(lora_rank, lora_alpha, lora_dropout, merge, o.parse_targets(lora_targets)), optimizer_config,
    )  # fmt: skip
    source = model_to_finetune(session, model, trust_remote_code)
    sets = [TrainingSet.parse(each) for each in train]
    check_rounds(rounds, corpus, settings)
    dev_set = _dev_set(session, dev) if dev else None

    def make(sets: Sequence[TrainingSet], called: str | None) -> Finetuning:
        return Finetuning.of(session.workspace, source, sets, settings, called, dev_set)

    run = make(sets, name)
    if rounds > 1 and name is None:  # a model of one round has the name without
        run = make(sets, f"{run.name}-rounds{rounds}")
    check_names(run.name, rounds, len(sets))
    if dry_run:
        show_plan(session.console, run.name, run.plan())
    elif corpus is not None:
        show_training(
            session.console, run_rounds(session.workspace, make, run.name, sets, rounds, corpus, restart=restart)
        )
    else:
        show_training(session.console, run.run(restart=restart))


def _dev_set(session: o.Session, folder: Path) -> DevSet:
    from llara_cli.evaluation.dev_set import DevSet

    found = DevSet.of(folder)
    if found.is_test:
        session.console.warn(f"{folder} has no split dev: weights chosen on its split test are not to be judged by it")
    found.warn_of_gaps(session.console.warn)
    return found
