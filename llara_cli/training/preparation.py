"""Prepares a base model for training: device and dtype, the size of forwards, and the loaded model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator, DistributedType

from llara_cli.core.distributed import ProcessGroup
from llara_cli.core.reporter import Reporter
from llara_cli.data.text_files import ignore
from llara_cli.model.decoder import Decoder, choose_dtype, refuse_attention
from llara_cli.model.float8 import refuse_without_float8
from llara_cli.model.source import ModelSource
from llara_cli.training import checkpoints
from llara_cli.training.base_model import BaseModel
from llara_cli.training.config import TrainConfig
from llara_cli.training.loop import autocast
from llara_cli.training.memory import Forwards, count_needs, fit_forwards, free_memory
from llara_cli.training.optimizers import STATE_BYTES
from llara_cli.training.probe import shrunken
from llara_cli.training.task import TrainingTask
from llara_cli.training.trainable_model import TrainableModel, choose_computation, load_trainable

CPU_TOKENS = 2048
"""Default of ``micro_batch_tokens`` on a CPU; benchmarks/*.json have the rates."""


@dataclass(frozen=True)
class Preparation:
    """Prepares a base model for a task.

    Attributes:
        accelerator: the processes that train.
        longest: tokens of the longest sequence, prompts included.
        free_memory: returns the free bytes of a device; None: forwards are not fitted to them.
    """

    base: BaseModel
    config: TrainConfig
    task: TrainingTask[Any]
    accelerator: Accelerator
    longest: int
    reporter: Reporter
    free_memory: Callable[[torch.device], int | None] = free_memory

    @property
    def process_group(self) -> ProcessGroup:
        """The accelerator's processes as a ``ProcessGroup``."""
        return ProcessGroup(self.accelerator.process_index, self.accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return choose_dtype(self.config.dtype, self.device)

    @cached_property
    def forwards(self) -> Forwards:
        """Tokens per forward and recomputed layers: from the settings, else what fits the GPU's memory."""
        execution = self.config.execution
        tokens, recompute = execution.micro_batch_tokens, execution.gradient_checkpointing
        free = self.free_memory(self.device)
        if free is None or None not in (tokens, recompute):
            return Forwards(tokens or CPU_TOKENS, int(recompute or False))
        least = int(self.accelerator.gather(torch.tensor([free], device=self.device)).min())
        return self.process_group.decide(
            lambda: fit_forwards(
                least,
                lambda: count_needs(self._shallow, self._static_bytes, self.autocast),
                self.base.info.layers,
                self.reporter,
                longest=self.longest,
                tokens=tokens,
                recompute=recompute,
            )
        )

    @property
    def execution(self) -> dict[str, Any]:
        """How it is computed: choices that change results by rounding only."""
        return {
            "gradient_checkpointing": self.forwards.every,
            "compile": self.config.execution.compile,
            "micro_batch_tokens": self.forwards.tokens,
            "processes": self.accelerator.num_processes,
        }

    def check_device(self) -> None:
        """Raise ``UserError`` for settings that the device does not support, before any work."""
        refuse_attention(self.config.execution.attention, self.device, self.dtype)
        if self.config.execution.compute == "float8":
            refuse_without_float8(self.device, self.dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward: autocast to the compute dtype."""
        return autocast(self.device, self.dtype)

    def _loaded(self, source: ModelSource) -> TrainableModel:
        # a plan loads models of the same shape: a note on the model is given once
        note = self.reporter.note if source is self.base.source else ignore
        model = load_trainable(self.base, self.config, self.device, self.dtype, source=source, note=note)
        self.task.adopt(model)
        return model

    def load(self, source: ModelSource) -> TrainableModel:
        """Load the model onto the device, as the settings say."""
        model, alone = self._loaded(source), self.accelerator.distributed_type == DistributedType.NO
        every = self.forwards.every
        choose_computation(model.decoder, self.config.execution, self.device, self.dtype, every=every, alone=alone)
        return model

    def _shallow(self, layers: int) -> Decoder:
        """A model of the same shape with ``layers`` layers, with dense attention and not compiled."""
        with TemporaryDirectory() as folder:
            return Decoder(self._loaded(shrunken(self.base.source, layers, Path(folder))).model)

    def _static_bytes(self, decoder: Decoder) -> float:
        """Bytes of weights, gradients, optimizer state and the objective's own tensors, in one process."""
        weights = sum(weight.nbytes for weight in decoder.model.parameters())
        trained = sum(weight.numel() for weight in checkpoints.trainable(decoder.model).values())
        kind, single = self.accelerator.distributed_type, torch.float32.itemsize
        of_gradients = single if kind in (DistributedType.NO, DistributedType.FSDP) else 2 * single  # DDP has buckets
        whole: float = weights + trained * (of_gradients + STATE_BYTES[self.config.optimizer.name])
        whole /= self.accelerator.num_processes if kind == DistributedType.FSDP else 1
        return whole + self.task.extra_bytes(decoder)
