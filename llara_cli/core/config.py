"""Every knob, typed. ``None`` means: chosen to fit the model, and written down in the manifest once chosen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llara_cli.core.errors import UserError

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M"
DEFAULT_LENGTH = 512
MAX_STEPS = 10_000
"""Optimiser steps that a run without ``--max-steps`` and ``--epochs`` takes at most (the paper's number)."""
OPTIMIZERS = ("adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit")
LAYOUTS = ("auto", "packed", "bucketed")
ATTENTIONS = ("auto", "varlen", "flex", "dense")
TRACKERS = ("tensorboard", "wandb")
LARGE_MODEL = 1_000_000_000
"""Parameters from which on the paper's settings (for 7 B) are the defaults."""


def refuse_unknown_attention(name: str) -> None:
    """Raise ``UserError`` for a way to compute attention that is none of ``ATTENTIONS``."""
    if name not in ATTENTIONS:
        raise UserError(f"--attention must be {', '.join(ATTENTIONS)}, not {name!r}")


def refuse_nonpositive(flag: str, value: float | None) -> None:
    """Raise ``UserError`` for a flag that was given and is not positive, or not a number."""
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{flag} must be positive{' and finite' if value == math.inf else ''}, not {value}")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (RepLLaMA's values).

    Attributes:
        merge: save a merged checkpoint beside the adapter.
        targets: names of the layers that get an adapter, as peft takes them (``q_proj``); None: all linear layers.
    """

    rank: int = 64
    alpha: int = 16
    dropout: float = 0.1
    merge: bool = True
    targets: tuple[str, ...] | None = None

    def check(self, backend: str) -> None:
        """Raise ``UserError`` for a value that cannot be."""
        if self.rank < 1 or self.alpha < 1:
            raise UserError(f"--lora-rank and --lora-alpha must be positive, not {self.rank} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--lora-dropout must lie in [0, 1), not {self.dropout}")
        if self.targets is not None and backend == "full":
            raise UserError("--lora-targets is for --backend lora or qlora: full training has no adapters")
        if self.targets is not None and not all(self.targets):
            raise UserError("--lora-targets: write names of layers, separated by commas, as in q_proj,v_proj")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and linear decay.

    Attributes:
        name: one of ``OPTIMIZERS``; all but ``adamw`` take less memory.
        weights: what weights that train are kept in: ``fp32``, or ``bf16``, rounded stochastically.
        batch_size: texts (queries, when fine-tuning) per optimizer step, over all processes.
        micro_batch_tokens: tokens of one forward; bounds memory. None: what a GPU has room for.
        gradient_checkpointing: whether layers are computed again in backward. None: as many as a GPU's memory takes.
        attention: how attention is computed, one of ``ATTENTIONS``.
        compute: ``auto``, or ``float8`` for the decoder's linear layers.
        track: experiment trackers of accelerate.
    """

    name: str = "adamw"
    learning_rate: float | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int | None = None
    micro_batch_tokens: int | None = None
    max_steps: int | None = None
    epochs: float | None = None
    seed: int = 42
    gradient_checkpointing: bool | None = None
    save_every: int | None = None
    weights: str = "fp32"
    compile: bool = False
    track: tuple[str, ...] = ()
    attention: str = "auto"
    compute: str = "auto"

    def check(self, backend: str) -> None:
        """Raise ``UserError`` for a value that cannot be."""
        positive = (
            "learning_rate",
            "batch_size",
            "micro_batch_tokens",
            "max_steps",
            "epochs",
            "save_every",
        )
        for name in positive:
            refuse_nonpositive(f"--{name.replace('_', '-')}", getattr(self, name))
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed must lie between 0 and {2**31 - 1}, not {self.seed}")
        if not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"--warmup-ratio must lie between 0 and 1, not {self.warmup_ratio}")
        if not self.max_grad_norm > 0:  # infinity: nothing is clipped
            raise UserError(f"--max-grad-norm must be positive, not {self.max_grad_norm}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight-decay must not be negative, and finite, not {self.weight_decay}")
        if self.max_steps is not None and self.epochs is not None:
            raise UserError("--max-steps and --epochs exclude each other")
        self._check_choices(backend)

    def _check_choices(self, backend: str) -> None:
        refuse_unknown_attention(self.attention)
        if self.name not in OPTIMIZERS:
            raise UserError(f"unknown optimizer {self.name!r}: known are {', '.join(OPTIMIZERS)}")
        if self.weights not in ("fp32", "bf16"):
            raise UserError(f"--weights must be fp32 or bf16, not {self.weights!r}")
        if self.weights == "bf16" and self.name != "adamw-8bit":
            raise UserError("--weights bf16 rounds stochastically, which only --optimizer adamw-8bit does")
        if self.weights == "bf16" and backend != "full":
            raise UserError("--weights bf16 is for --backend full: adapters are small, and train in fp32")
        if self.compute not in ("auto", "float8"):
            raise UserError(f"--compute must be auto or float8, not {self.compute!r}")
        if self.compute == "float8" and backend != "full":
            raise UserError("--compute float8 is for --backend full: adapters are small, and compute as --dtype says")
        if unknown := set(self.track) - set(TRACKERS):
            raise UserError(f"unknown tracker {min(unknown)!r}: known are {', '.join(TRACKERS)}")


@dataclass(frozen=True)
class PretrainConfig:
    """``llara pretrain``: the adaptation with EBAE and EBAR."""

    backend: str = "full"
    recipe: str | None = None
    max_length: int | None = None
    dtype: str = "auto"
    targets: Literal["all", "unique"] | None = None
    drop_stop_words: bool | None = None
    layout: str = "auto"
    adapter: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def check(self) -> None:
        """Raise ``UserError`` for a value that cannot be."""
        self.adapter.check(self.backend)
        self.optimizer.check(self.backend)
        refuse_nonpositive("--max-length", self.max_length)
        if self.layout not in LAYOUTS:
            raise UserError(f"--layout must be {', '.join(LAYOUTS)}, not {self.layout!r}")
        if self.targets not in (None, "all", "unique"):
            raise UserError(f"--targets must be all or unique, not {self.targets!r}")

    def fitted(self, parameters: int, max_positions: int | None) -> PretrainConfig:
        """With the model's size (parameters) and positions known, every open value chosen."""
        large = parameters >= LARGE_MODEL
        length = self.max_length or min(1024 if large else 256, max_positions or 1024)
        batch = self.optimizer.batch_size or (256 if large else 64)
        rate = self.optimizer.learning_rate or learning_rate(self.backend, parameters)
        return replace(self, max_length=length, optimizer=replace(self.optimizer, batch_size=batch, learning_rate=rate))


@dataclass(frozen=True)
class FinetuneConfig:
    """``llara finetune``: InfoNCE over cosine / temperature.

    Attributes:
        mask_margin: a passage that scores more than this above the positive is no negative.
        distillation: share of the loss that follows ``pos_scores`` and ``neg_scores``.
        dims: widths at which the embedding must work (Matryoshka), beside the whole one; none: those of the model.
        symmetric: queries and passages get the same prompt; None: as the model has it.
        dev_every: steps between scores on the dev set.
        patience: scores without a better one that end the run; None: it goes on to its end.
        set_weights: how many times each training set is gone through in an epoch.
    """

    backend: str = "lora"
    recipe: str | None = None
    query_length: int = 64
    passage_length: int = 160
    negatives: int = 15
    temperature: float = 0.01
    chunk_size: int | None = None
    in_batch_negatives: bool = True
    mask_false_negatives: bool = True
    mask_margin: float | None = None
    distillation: float = 0.0
    dims: tuple[int, ...] = ()
    symmetric: bool | None = None
    set_weights: tuple[float, ...] = (1.0,)
    dev_every: int | None = None
    patience: int | None = None
    dtype: str = "auto"
    adapter: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def fitted(self, parameters: int) -> FinetuneConfig:
        """With the model's size (parameters) known, every open value chosen."""
        batch = self.optimizer.batch_size or 32
        rate = self.optimizer.learning_rate or learning_rate(self.backend, parameters)
        return replace(self, optimizer=replace(self.optimizer, batch_size=batch, learning_rate=rate))

    def check(self) -> None:
        """Raise ``UserError`` for a value that cannot be."""
        self.adapter.check(self.backend)
        self.optimizer.check(self.backend)
        refuse_nonpositive("--temperature", self.temperature)
        if self.negatives < 0:
            raise UserError(f"--negatives must not be negative, not {self.negatives}")
        if not self.in_batch_negatives and self.negatives == 0:
            raise UserError("--negatives 0 with --no-in-batch-negatives leaves nothing to contrast with")
        refuse_nonpositive("--chunk-size", self.chunk_size)
        refuse_nonpositive("--dev-every", self.dev_every)
        refuse_nonpositive("--patience", self.patience)
        for dim in self.dims:
            refuse_nonpositive("--dims", dim)
        if not 0 <= self.distillation <= 1:
            raise UserError(f"--distillation must lie between 0 and 1, not {self.distillation}")
        if self.mask_margin is not None and not math.isfinite(self.mask_margin):
            raise UserError(f"--mask-margin must be a finite number, not {self.mask_margin}")


ADAPTER_RATE = 3e-4
"""Default peak learning rate of adapters (the paper's fine-tuning)."""


def learning_rate(backend: str, parameters: int) -> float:
    """The default peak learning rate; of full training: the paper's 1e-5 for 7 B, more for smaller models."""
    if backend != "full":
        return ADAPTER_RATE
    return 1e-5 if parameters >= 3 * LARGE_MODEL else 2e-5 if parameters >= LARGE_MODEL else 1e-4


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"max_length": 1024, "batch_size": 256, "max_steps": 10_000, "learning_rate": 1e-5},
}
"""``--preset``: values for flags that were not given."""


def as_json(settings: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Flat JSON values for a manifest; what changes results by float noise at most (memory bounds) is left out."""
    flat = asdict(settings)
    for part, recorded in (("adapter", "adapter"), ("optimizer", "optimiser")):
        flat |= {f"{recorded}.{key}": value for key, value in flat.pop(part).items()}
    execution = ("micro_batch_tokens", "save_every", "gradient_checkpointing", "compile", "attention", "track")
    silent = {f"optimiser.{key}" for key in execution} | {"chunk_size", "layout"}
    if settings.optimizer.compute == "auto":  # as before there was another
        silent.add("optimiser.compute")
    return {key: value for key, value in flat.items() if key not in silent}


def apply_preset(settings: PretrainConfig, preset: str | None) -> PretrainConfig:
    """``--preset``: its values where no flag spoke. Raises ``UserError`` for an unknown one."""
    if preset is None:
        return settings
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}: known are {', '.join(PRESETS)}")
    values = PRESETS[preset]
    optimizer = settings.optimizer
    steps = None if optimizer.epochs is not None else optimizer.max_steps or values["max_steps"]
    return replace(
        settings,
        max_length=settings.max_length or values["max_length"],
        optimizer=replace(
            optimizer,
            batch_size=optimizer.batch_size or values["batch_size"],
            max_steps=steps,
            learning_rate=optimizer.learning_rate or values["learning_rate"],
        ),
    )
