"""Settings of ``pretrain`` and ``finetune``; None: chosen to fit the model and the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from llara_cli.core.config import (
    MODEL_HELP,
    Attention,
    Dtype,
    Group,
    Layout,
    LoraConfig,
    Setting,
    check_values,
    recorded,
    refuse_bad_seed,
)
from llara_cli.core.errors import UserError

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M"
MAX_STEPS = 10_000
"""Most optimizer steps of a run without ``max_steps`` and ``epochs`` (the paper's number)."""
LARGE_MODEL = 1_000_000_000
"""Models of this many parameters or more default to the paper's settings (for 7 B)."""
ADAPTER_RATE = 3e-4
"""Default peak learning rate of adapters (the paper's fine-tuning)."""
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"max_length": 1024, "batch_size": 256, "max_steps": 10_000, "learning_rate": 1e-5},
}
"""``preset``: values for settings that were not set."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and linear decay.

    >>> from llara import OptimizerConfig, PretrainConfig
    >>> PretrainConfig(optimizer=OptimizerConfig(name="adamw-8bit", learning_rate=1e-4)).optimizer.weights
    'fp32'
    """

    name: Annotated[
        Literal["adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit"],
        Setting("AdamW, or a variant that takes less memory.", flag="--optimizer", recorded="optimiser.name"),
    ] = "adamw"
    learning_rate: Annotated[
        float | None,
        Setting(
            "Peak learning rate.",
            default="3e-4 for adapters; full training: 1e-4, from 1 B parameters 2e-5, from 3 B 1e-5",
            recorded="optimiser.learning_rate",
            positive=True,
        ),
    ] = None
    warmup_ratio: Annotated[
        float, Setting("Fraction of the steps with a rising learning rate.", recorded="optimiser.warmup_ratio")
    ] = 0.1
    weight_decay: Annotated[float, Setting("AdamW's weight decay.", recorded="optimiser.weight_decay")] = 0.0
    max_grad_norm: Annotated[float, Setting("Clip the gradient norm to this.", recorded="optimiser.max_grad_norm")] = (
        1.0
    )
    weights: Annotated[
        Literal["fp32", "bf16"],
        Setting("Dtype of trainable weights; bf16 needs adamw-8bit.", recorded="optimiser.weights"),
    ] = "fp32"

    def check(self, backend: str) -> None:
        """Raise ``UserError`` for invalid values; ``backend``: the training backend."""
        if not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"`optimizer.warmup_ratio` must lie between 0 and 1, not {self.warmup_ratio}")
        if not self.max_grad_norm > 0:  # infinity: no clipping
            raise UserError(f"`optimizer.max_grad_norm` must be positive, not {self.max_grad_norm}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"`optimizer.weight_decay` must not be negative, and finite, not {self.weight_decay}")
        if self.weights == "bf16" and self.name != "adamw-8bit":
            raise UserError(
                "`optimizer.weights='bf16'` rounds stochastically, which only `optimizer.name='adamw-8bit'` does"
            )
        if self.weights == "bf16" and backend != "full":
            raise UserError("`optimizer.weights='bf16'` is for `backend='full'`: adapters are small, and train in fp32")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How training is computed: speed and memory. Results differ by rounding only, except for ``float8``.

    >>> from llara import ExecutionConfig, FinetuneConfig
    >>> FinetuneConfig(execution=ExecutionConfig(micro_batch_tokens=4096, compile=True)).execution.attention
    'auto'
    """

    micro_batch_tokens: Annotated[
        int | None,
        Setting(
            "Tokens per forward; bounds the memory used.",
            default="as many as fit the GPU's memory; 2,048 on a CPU",
            recorded="",
            positive=True,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Setting(
            "Recompute layers in backward: less memory, up to 1/3 more time.",
            off="--no-gradient-checkpointing",
            default="as many layers as the GPU's memory requires",
            recorded="",
        ),
    ] = None
    attention: Annotated[Attention, Setting("Attention implementation.", recorded="")] = "auto"
    compile: Annotated[bool, Setting("torch.compile the decoder's layers.", recorded="")] = False
    compute: Annotated[
        Literal["auto", "float8"],
        Setting("float8: for large models, on GPUs with float8 matmul.", recorded="optimiser.compute"),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings that pre-training and fine-tuning share."""

    backend: Annotated[str, Setting("Full training, or adapters.", panel="Model", complete="training backends")] = (
        "full"
    )
    recipe: Annotated[
        str | None,
        Setting(
            "Prompts, targets and losses.",
            panel="Model",
            choices=("paper", "released"),
            default="the model's own, else paper",
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, Setting("Allow the checkpoint's own Python code to run.", panel="Model", recorded="")
    ] = False
    batch_size: Annotated[
        int | None,
        Setting("", panel="Steps", recorded="optimiser.batch_size", positive=True),
    ] = None
    max_steps: Annotated[
        int | None,
        Setting(
            "Optimizer steps.",
            panel="Steps",
            default="one epoch, at most 10,000 steps",
            recorded="optimiser.max_steps",
            positive=True,
        ),
    ] = None
    epochs: Annotated[
        float | None,
        Setting("Passes over the data, instead of steps.", panel="Steps", recorded="optimiser.epochs", positive=True),
    ] = None
    save_every: Annotated[
        int | None,
        Setting("Steps between checkpoints.", panel="Steps", default="ten minutes", recorded="", positive=True),
    ] = None
    seed: Annotated[
        int,
        Setting("Seed of data order, dropout and new weights.", panel="Steps", recorded="optimiser.seed"),
    ] = 42
    optimizer: Annotated[OptimizerConfig, Group("Optimizer")] = OptimizerConfig()
    lora: Annotated[LoraConfig, Group("LoRA")] = LoraConfig()  # noqa: RUF009 (frozen)
    dtype: Annotated[Dtype, Setting("Compute dtype.", panel="Speed and memory")] = "auto"
    execution: Annotated[ExecutionConfig, Group("Speed and memory")] = ExecutionConfig()
    track: Annotated[
        tuple[Literal["tensorboard", "wandb"], ...],
        Setting("Log to this experiment tracker; repeatable.", panel="Run", recorded="", repeated=True),
    ] = ()

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ``UserError`` for an invalid value."""
        check_values(self)
        self.lora.check(self.backend)
        self.optimizer.check(self.backend)
        refuse_bad_seed(self.seed)
        if self.max_steps is not None and self.epochs is not None:
            raise UserError("`max_steps` and `epochs` exclude each other")
        if self.execution.compute == "float8" and self.backend != "full":
            raise UserError(
                "`execution.compute='float8'` is for `backend='full'`: adapters are small, and compute in `dtype`"
            )

    def recorded(self) -> dict[str, Any]:
        """The settings as manifests record them, once all are chosen."""
        settings = recorded(self)
        if self.execution.compute == "auto":  # as in manifests from before there was a choice
            del settings["optimiser.compute"]
        return settings

    def with_learning_rate(self, parameters: int) -> Self:
        """The settings with a learning rate: if none was set, one that fits the model's number of parameters."""
        rate = self.optimizer.learning_rate or default_learning_rate(self.backend, parameters)
        return replace(self, optimizer=replace(self.optimizer, learning_rate=rate))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Settings of ``pretrain``: adapt a language model with EBAE and EBAR (arXiv 2312.15503, section 3).

    >>> from llara import PretrainConfig
    >>> PretrainConfig(max_steps=100, max_length=256).recipe is None
    True
    """

    model: Annotated[
        str | None,
        Setting(MODEL_HELP, panel="Model", complete="models", default=DEFAULT_MODEL, recorded=""),
    ] = None
    preset: Annotated[
        Literal["paper"] | None,
        Setting("The paper's settings for 7 B: 10,000 steps of 256 texts of 1,024 tokens.", panel="Steps", recorded=""),
    ] = None
    batch_size: Annotated[
        int | None,
        Setting(
            "Texts per optimizer step, across devices.",
            panel="Steps",
            default="64; from 1 B parameters 256",
            recorded="optimiser.batch_size",
            positive=True,
        ),
    ] = None
    max_length: Annotated[
        int | None,
        Setting(
            "Tokens per sequence, including both prompts.",
            panel="Texts",
            default="256; from 1 B parameters 1,024",
            positive=True,
        ),
    ] = None
    targets: Annotated[
        Literal["all", "unique"] | None,
        Setting("Which tokens of the target text are predicted.", panel="Texts", default="the recipe's"),
    ] = None
    drop_stop_words: Annotated[
        bool | None,
        Setting(
            "Do not predict English stop words.",
            panel="Texts",
            off="--keep-stop-words",
            default="the recipe's",
        ),
    ] = None
    layout: Annotated[Layout, Setting("How texts are batched.", panel="Speed and memory", recorded="")] = "auto"

    def fitted(self, parameters: int, max_positions: int | None) -> PretrainConfig:
        """The settings with every value chosen, by the model's number of parameters and positions."""
        large = parameters >= LARGE_MODEL
        length = self.max_length or min(1024 if large else 256, max_positions or 1024)
        batch = self.batch_size or (256 if large else 64)
        return replace(self, max_length=length, batch_size=batch).with_learning_rate(parameters)

    def with_preset(self) -> PretrainConfig:
        """The settings with the preset's values where none was set."""
        if self.preset is None:
            return self
        values = PRESETS[self.preset]
        return replace(
            self,
            max_length=self.max_length or values["max_length"],
            batch_size=self.batch_size or values["batch_size"],
            max_steps=None if self.epochs is not None else self.max_steps or values["max_steps"],
            optimizer=replace(self.optimizer, learning_rate=self.optimizer.learning_rate or values["learning_rate"]),
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of ``finetune``: InfoNCE over cosine / temperature (arXiv 2312.15503, section 4.1).

    >>> from llara import FinetuneConfig
    >>> FinetuneConfig(negatives=7, temperature=0.02).backend
    'lora'
    """

    model: Annotated[
        str | None,
        Setting(
            MODEL_HELP,
            panel="Model",
            complete="models",
            default=f"the newest pretrained model of the workspace, else {DEFAULT_MODEL}",
            recorded="",
        ),
    ] = None
    backend: Annotated[str, Setting("Full training, or adapters.", panel="Model", complete="training backends")] = (
        "lora"
    )
    symmetric: Annotated[
        bool | None,
        Setting(
            "Same prompt for queries and passages, as for duplicate questions.",
            panel="Model",
            off="--asymmetric",
            default="the model's own",
        ),
    ] = None
    dims: Annotated[
        tuple[int, ...],
        Setting(
            "Vector widths to train, as 768,256,64 (Matryoshka).",
            panel="Model",
            default="the model's own",
            positive=True,
        ),
    ] = ()
    batch_size: Annotated[
        int | None,
        Setting(
            "Queries per optimizer step, across devices.",
            panel="Steps",
            default="32",
            recorded="optimiser.batch_size",
            positive=True,
        ),
    ] = None
    query_length: Annotated[int, Setting("Tokens per query, including the prompt.", panel="Texts", positive=True)] = 64
    passage_length: Annotated[
        int, Setting("Tokens per passage, including the prompt.", panel="Texts", positive=True)
    ] = 160
    negatives: Annotated[int, Setting("Hard negatives per query.", panel="Negatives and loss")] = 15
    temperature: Annotated[
        float, Setting("Softmax temperature: cosines are divided by it.", panel="Negatives and loss", positive=True)
    ] = 0.01
    in_batch_negatives: Annotated[
        bool,
        Setting(
            "Use other queries' passages as negatives too.",
            panel="Negatives and loss",
            off="--no-in-batch-negatives",
        ),
    ] = True
    mask_false_negatives: Annotated[
        bool,
        Setting(
            "Ignore negatives with the id or text of a positive of the query.",
            panel="Negatives and loss",
            off="--no-mask-false-negatives",
        ),
    ] = True
    mask_margin: Annotated[
        float | None,
        Setting(
            "Ignore negatives that score this much above the positive (Qwen3-Embedding: 0.1).",
            panel="Negatives and loss",
        ),
    ] = None
    distillation: Annotated[
        float,
        Setting(
            "Weight (0-1) of the distillation loss, from pos_scores and neg_scores in the rows.",
            panel="Negatives and loss",
        ),
    ] = 0.0
    rounds: Annotated[
        int,
        Setting(
            "Fine-tune this many times, each time with negatives mined anew from `corpus`.",
            panel="Negatives and loss",
            recorded="",
        ),
    ] = 1
    corpus: Annotated[
        Path | None, Setting("Documents to mine negatives from, for `rounds`.", panel="Negatives and loss", recorded="")
    ] = None
    dev: Annotated[
        Path | None,
        Setting(
            "BEIR folder with a dev split: the weights with the best nDCG@10 on it are kept.",
            panel="Dev set",
            recorded="",
        ),
    ] = None
    dev_every: Annotated[
        int | None,
        Setting("Steps between evaluations on `dev`.", panel="Dev set", default="a tenth of all steps", positive=True),
    ] = None
    patience: Annotated[
        int | None,
        Setting("Stop after this many evaluations without a new best.", panel="Dev set", positive=True),
    ] = None
    chunk_size: Annotated[
        int | None,
        Setting("Most texts per forward (GradCache).", panel="Speed and memory", recorded="", positive=True),
    ] = None

    def fitted(self, parameters: int) -> FinetuneConfig:
        """The settings with every value chosen, by the model's number of parameters."""
        return replace(self, batch_size=self.batch_size or 32).with_learning_rate(parameters)

    def check(self) -> None:
        """Raise ``UserError`` for an invalid value."""
        super().check()
        if self.negatives < 0:
            raise UserError(f"`negatives` must not be negative, not {self.negatives}")
        if not self.in_batch_negatives and self.negatives == 0:
            raise UserError("`negatives=0` with `in_batch_negatives=False` leaves nothing to contrast with")
        if not 0 <= self.distillation <= 1:
            raise UserError(f"`distillation` must lie between 0 and 1, not {self.distillation}")
        if self.mask_margin is not None and not math.isfinite(self.mask_margin):
            raise UserError(f"`mask_margin` must be a finite number, not {self.mask_margin}")
        if self.dev is None and (self.dev_every or self.patience):
            raise UserError("`dev_every` and `patience` need `dev`, a BEIR folder")
        self._check_rounds()

    def _check_rounds(self) -> None:
        if self.rounds < 1:
            raise UserError(f"`rounds` must be positive, not {self.rounds}")
        if (self.rounds > 1) != (self.corpus is not None):
            raise UserError(
                "`rounds` of 2 or more needs a `corpus` to mine from, and `corpus` needs `rounds` of 2 or more"
            )
        if self.rounds > 1 and self.distillation:
            raise UserError(
                "`distillation` needs a teacher's scores, which the negatives mined by `rounds` do not have"
            )
        if self.rounds > 1 and not self.negatives:
            raise UserError("`rounds` mines hard negatives, but `negatives=0` uses none")


def default_learning_rate(backend: str, parameters: int) -> float:
    """The default peak learning rate; of full training: the paper's 1e-5 for 7 B, more for smaller models."""
    if backend != "full":
        return ADAPTER_RATE
    return 1e-5 if parameters >= 3 * LARGE_MODEL else 2e-5 if parameters >= LARGE_MODEL else 1e-4
