"""The training loop: batches in a seeded order, updates, history, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from llara_cli.core.errors import LlaraError
from llara_cli.core.reporter import Bar
from llara_cli.training import checkpoints
from llara_cli.training.config import TrainConfig
from llara_cli.training.early_stopping import EarlyStopping
from llara_cli.training.engine import AcceleratedEngine, local
from llara_cli.training.history import History
from llara_cli.training.interrupts import deferred_interrupt
from llara_cli.training.objective import BatchLosses, Objective
from llara_cli.training.optimizers import make_optimizer
from llara_cli.training.schedule import Schedule

FP16_TRIES = 24
"""Times that the fp16 loss scale is halved after overflows: from 65,536 to almost nothing."""
ItemT = TypeVar("ItemT")


@dataclass
class Trainer(Generic[ItemT]):
    """Trains ``model`` in ``folder``, from the newest checkpoint there if there is one.

    Attributes:
        batch: returns the items of a step, by epoch and item numbers.
        dtype: compute dtype; trainable weights are fp32 unless the settings say otherwise.
        early_stopping: evaluation on a dev set during training, if any.
        resumed_at: steps done by earlier runs.
    """

    accelerator: Accelerator
    model: PreTrainedModel
    objective: Objective[ItemT]
    schedule: Schedule
    batch: Callable[[int, Sequence[int]], Sequence[ItemT]]
    config: TrainConfig
    folder: Path
    dtype: torch.dtype
    early_stopping: EarlyStopping | None = None
    resumed_at: int = 0

    def __post_init__(self) -> None:
        weights = list(checkpoints.trainable(self.model).values())
        self.device = weights[0].device
        optimizer, fp16 = make_optimizer(weights, self.config.optimizer), self.dtype == torch.float16
        self.engine = AcceleratedEngine(self.accelerator, self.model, optimizer, fp16=fp16)
        self.history = History(self.folder, self.accelerator)

    def resume(self) -> None:
        """Resume from the newest checkpoint, if there is one.

        Raises ``LlaraError`` if it is damaged, or does not fit the model or the history.
        """
        for group in self.engine.optimizer.param_groups:
            group["initial_lr"] = float(group["lr"])
        if self.engine.rank == 0:
            checkpoints.mend(self.folder)
        self.accelerator.wait_for_everyone()
        self.resumed_at = done = checkpoints.restore(self.folder, self.model, self.engine.optimizer)
        warmup = int(self.config.optimizer.warmup_ratio * self.schedule.steps)
        self.rates = get_linear_schedule_with_warmup(
            self.engine.optimizer, warmup, self.schedule.steps, last_epoch=done - 1
        )
        self.history.resume(done)
        if self.early_stopping is not None:
            self.early_stopping.resume(checkpoints.scores(self.folder))

    def train(self, bar: Bar) -> list[dict[str, Any]]:
        """Train to the last step; returns the history, one row per optimizer step.

        Raises ``LlaraError`` if a loss, a gradient or a weight is not finite; the last good weights are kept.
        """
        start = self.resumed_at
        bar.advance(start)
        self.model.train()
        times = checkpoints.SaveTimes(self.config.save_every, self.engine.agreed)
        with self.history, deferred_interrupt(self.engine) as interrupted:
            for step, (epoch, numbers) in enumerate(self.schedule.batches(start), start + 1):
                if self._stops_early:
                    break
                row = self.step(step, self.batch(epoch, numbers))
                bar.show(self.history.add(row))
                bar.advance(1)
                last = step == self.schedule.steps
                scored = self.early_stopping is not None and self.early_stopping.is_due(step, last=last)
                if last or scored:
                    self._check_weights(step)
                if self.early_stopping is not None and scored:
                    bar.show(self.early_stopping.evaluate(step))
                stop = interrupted()
                if stop or times.is_due(step, ending=last or self._stops_early):
                    if not (last or scored):
                        self._check_weights(step)
                    self._save(step)
                    times.saved()
                if stop:
                    raise stop
        return self.history.rows

    def step(self, step: int, items: Sequence[ItemT]) -> dict[str, Any]:
        # dropout is seeded by the step, so a resumed run draws the same as an uninterrupted one
        seed = (self.config.seed << 32) + step
        torch.manual_seed(seed)
        self.objective.seed = (self.config.seed << 32) + (step << 16)
        losses, norm = self._gradients(items)
        for _ in range(FP16_TRIES):
            if math.isfinite(norm) or not self.engine.scaler.is_enabled():
                break
            self.engine.update()  # a scaled gradient overflowed: this skips the update, and halves the scale
            losses, norm = self._gradients(items)
        if not math.isfinite(losses.loss) or not math.isfinite(norm):
            if not self._spoiled():
                self._save(step - 1)
            raise self._failure(step, f"the loss is {losses.loss}, the gradient's norm {norm}")
        row = _row(step, losses, float(self.rates.get_last_lr()[0]), norm)
        torch.manual_seed(seed)  # processes must round alike, whatever random numbers their forwards drew
        self.engine.update()
        self.rates.step()
        return row

    def _gradients(self, items: Sequence[ItemT]) -> tuple[BatchLosses, float]:
        """Compute the gradients of a batch, unscaled and clipped; return its losses, and the norm before clipping."""
        self.engine.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.dtype):
            losses = self.objective.backward(items, self.engine)
        return losses, self.engine.clip(self.config.optimizer.max_grad_norm)

    @property
    def _stops_early(self) -> bool:
        return self.early_stopping is not None and self.early_stopping.exhausted

    def _save(self, step: int) -> None:
        self.history.sync()  # a checkpoint must never be ahead of the history
        scores = self.early_stopping.rows if self.early_stopping is not None else None
        writes = self.engine.rank == 0
        checkpoints.save(self.folder, self.model, self.engine.optimizer, step, writes=writes, scores=scores)
        if self.early_stopping is not None:
            self.early_stopping.checkpoint_saved()
        self.accelerator.wait_for_everyone()

    def _check_weights(self, step: int) -> None:
        """Raise ``LlaraError`` if the update of ``step`` made a weight non-finite: it must not be scored or saved."""
        if self._spoiled():
            raise self._failure(step, "the update produced non-finite weights")

    def _spoiled(self) -> bool:
        """Whether any weight is not finite in any process."""
        finite = [local(weight).isfinite().all() for weight in checkpoints.trainable(self.model).values()]
        return self.engine.agreed(not bool(torch.stack(finite).all()))  # one sync, not one per weight

    def _failure(self, step: int, what: str) -> LlaraError:
        return LlaraError(
            f"step {step}: {what}; {checkpoints.what_is_kept(self.folder)};"
            " lower `optimizer.learning_rate` and run again with `restart=True` or another `name`"
        )


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast to ``dtype``; a null context for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _row(step: int, losses: BatchLosses, rate: float, norm: float) -> dict[str, Any]:
    """A row of the history."""
    return {
        "step": step,
        "loss": losses.loss,
        "ebae": losses.ebae,
        "ebar": losses.ebar,
        "lm": losses.lm,
        "learning_rate": rate,
        "grad_norm": norm,
        "texts": losses.texts,
        "tokens": losses.tokens,
    }
