"""Flags that several verbs share, and what every verb opens first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llara_cli.core.config import DEFAULT_MODEL
from llara_cli.core.console import Console
from llara_cli.core.errors import UserError
from llara_cli.core.launcher import is_follower, launched_processes
from llara_cli.core.names import check_name

if TYPE_CHECKING:
    from llara_cli.core.workspace import Workspace

_TRAINING, _MODEL, _ADAPTER = "Training", "Model", "LoRA"

Workspace_ = Annotated[
    Path | None,
    typer.Option(
        "--workspace", "-w", help="Where artifacts live. (env LLARA_WORKSPACE, else ./workspace)", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More notes, and a traceback on an error.")]


def _checked_name(name: str | None) -> str | None:
    return None if name is None else check_name(name)


Name = Annotated[
    str | None,
    typer.Option(
        help="The artifact's name; derived from the inputs if left out.", show_default=False, callback=_checked_name
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Build anew beside the old artifact and swap when finished.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan (memory, steps, time, disk) and stop.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let a checkpoint run its own Python code.")]
Dtype = Annotated[str, typer.Option(help="Compute dtype: auto, fp32, bf16 or fp16.")]
_NAMED = "A workspace name, a folder, a hub id or a .gguf file."
Model = Annotated[
    str | None,
    typer.Option(help=f"{_NAMED} (default: the newest)", show_default=False, rich_help_panel=_MODEL),
]
BaseModel = Annotated[
    str | None,
    typer.Option(help=f"{_NAMED} (default: {DEFAULT_MODEL})", show_default=False, rich_help_panel=_MODEL),
]
ModelToFinetune = Annotated[
    str | None,
    typer.Option(
        help=f"{_NAMED} (default: the newest pretrained model of the workspace, else {DEFAULT_MODEL})",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="paper or released. (default: the model's own, else paper)", show_default=False, rich_help_panel=_MODEL
    ),
]
Preset = Annotated[
    str | None, typer.Option(help="paper: the paper's settings for 7 B.", show_default=False, rich_help_panel=_TRAINING)
]
BatchSize = Annotated[
    int | None, typer.Option(help="Texts (queries) per optimizer step.", show_default=False, rich_help_panel=_TRAINING)
]
MicroBatchTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens of one forward; bounds memory. (default: what a GPU has room for; 2,048 on a CPU)",
        show_default=False,
        rich_help_panel=_TRAINING,
    ),
]
MaxSteps = Annotated[int | None, typer.Option(help="Optimiser steps.", show_default=False, rich_help_panel=_TRAINING)]
Epochs = Annotated[
    float | None,
    typer.Option(
        help="Passes over the data. (default: 1, at most 10,000 steps)", show_default=False, rich_help_panel=_TRAINING
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Peak; fits the model's size if left out.", show_default=False, rich_help_panel=_TRAINING),
]
WarmupRatio = Annotated[float, typer.Option(help="Share of the steps with rising rate.", rich_help_panel=_TRAINING)]
WeightDecay = Annotated[float, typer.Option(help="AdamW's decay.", rich_help_panel=_TRAINING)]
MaxGradNorm = Annotated[float, typer.Option(help="Clip the gradient's norm.", rich_help_panel=_TRAINING)]
Seed = Annotated[
    int,
    typer.Option(help="Seed for choosing and ordering data, dropout and new embeddings.", rich_help_panel=_TRAINING),
]
Optimizer = Annotated[
    str, typer.Option(help="adamw, adamw-8bit, paged-adamw or paged-adamw-8bit.", rich_help_panel=_TRAINING)
]
Weights = Annotated[
    str,
    typer.Option(help="What trained weights are kept in: fp32, or bf16 with adamw-8bit.", rich_help_panel=_TRAINING),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="torch.compile the decoder's layers.", rich_help_panel=_TRAINING)
]
Attention = Annotated[str, typer.Option(help="How attention is computed: auto, varlen, flex or dense.")]
Compute = Annotated[
    str,
    typer.Option(help="auto, or float8: for large models, on GPUs that have it.", rich_help_panel=_TRAINING),
]
Track = Annotated[
    list[str] | None,
    typer.Option(help="Log to tensorboard or wandb; repeatable.", show_default=False, rich_help_panel=_TRAINING),
]
Merge = Annotated[
    bool,
    typer.Option("--merge/--no-merge", help="Save a merged checkpoint beside the adapter.", rich_help_panel=_ADAPTER),
]
GradientCheckpointing = Annotated[
    bool | None,
    typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        help="Compute layers again in backward: less memory, up to a third more time."
        " (default: as many layers as a GPU's memory takes)",
        show_default=False,
        rich_help_panel=_TRAINING,
    ),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        help="Steps between checkpoints. (default: ten minutes)", show_default=False, rich_help_panel=_TRAINING
    ),
]
LoraRank = Annotated[int, typer.Option(help="Rank of the adapters.", rich_help_panel=_ADAPTER)]
LoraAlpha = Annotated[int, typer.Option(help="Scale of the adapters.", rich_help_panel=_ADAPTER)]
LoraDropout = Annotated[float, typer.Option(help="Dropout before the adapters.", rich_help_panel=_ADAPTER)]
LoraTargets = Annotated[
    str | None,
    typer.Option(
        help="Layers to adapt, e.g. q_proj,v_proj. (default: every linear layer that can take an adapter)",
        show_default=False,
        rich_help_panel=_ADAPTER,
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A backend's own setting, key=value; repeatable.", show_default=False)
]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens of one forward.", show_default=False)]
Dim = Annotated[
    int | None,
    typer.Option("--dim", help="Keep the first N dimensions (Matryoshka). (default: all)", show_default=False),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="torch, sentence-transformers, ... (default: sentence-transformers for its models, else torch)",
        show_default=False,
    ),
]
TableFormat = Annotated[str, typer.Option("--format", help="table, markdown, latex, csv or json.")]
QueryLength = Annotated[
    int | None,
    typer.Option(
        help="Total tokens of a query, prompt included. (default: 512, or the model's positions)", show_default=False
    ),
]


SHARED = ("pretrain", "finetune", "encode")
"""Verbs that several launched processes share."""


@dataclass(frozen=True)
class Session:
    """What every verb opens first: the workspace and the console."""

    workspace: Workspace
    console: Console


def workspace_path(given: Path | None, ctx: Any) -> Path:
    """``-w`` after the verb, before it, ``$LLARA_WORKSPACE``, ``./workspace``. Raises ``UserError`` where a file is."""
    outer = ctx.parent.params.get("workspace") if ctx.parent is not None else None
    root = Path(given or outer or os.environ.get("LLARA_WORKSPACE") or "workspace").expanduser()
    blocking = next((path for path in (root, *root.parents) if path.exists()), root)
    if blocking.exists() and not blocking.is_dir():
        raise UserError(f"workspace {root}: {blocking} is a file, not a directory")
    return root


def open_session(ctx: typer.Context, workspace: Path | None, as_json: bool, quiet: bool, verbose: bool) -> Session:
    """The session of a verb. The workspace itself is created when something is first written."""
    from llara_cli.core.workspace import Workspace

    if launched_processes() > 1 and ctx.info_name not in SHARED:
        raise UserError(f"{ctx.info_name} runs in one process; {', '.join(SHARED)} run in several")
    root = workspace_path(workspace, ctx)
    console = Console(as_json, quiet, verbose, muted=is_follower())
    return Session(Workspace(root, console), console)


def yield_standard_output(console: Console, output: Path | None) -> None:
    """Print no result where ``--output`` is standard output itself, so that nothing else comes between.

    Raises ``UserError`` under ``--json``, which is one object on standard output.
    """
    from llara_cli.core.output_files import is_standard_output

    if output is None or not is_standard_output(output):
        return
    if console.as_json:
        raise UserError(f"--json prints on standard output, and so does --output {output}: leave one of them out")
    console.taken = True


def default_model(workspace_root: Path) -> str:
    """``model`` of ``llara.toml``, else the project's default base model."""
    from llara_cli.commands.defaults import read_toml

    return str(read_toml(workspace_root).get("model", DEFAULT_MODEL))


def parse_targets(given: str | None) -> tuple[str, ...] | None:
    """``q_proj,v_proj``."""
    return tuple(name.strip() for name in given.split(",")) if given is not None else None


def parse_dims(given: str | None) -> tuple[int, ...]:
    """``768,256,64``. Raises ``UserError`` for what is no list of whole numbers."""
    try:
        return tuple(int(item) for item in given.split(",")) if given is not None else ()
    except ValueError as error:
        raise UserError(f"--dims {given}: write whole numbers, as in 768,256,64") from error
