"""The loop that every kind of training shares: batches in a seeded order, AdamW, schedule, history, checkpoints."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from llara_cli.console import Bar, LlaraError
from llara_cli.settings import MAX_STEPS, OptimiserSettings
from llara_cli.training import checkpoints
from llara_cli.training.pretext import Terms

HISTORY = "history.jsonl"
FP16_TRIES = 24
"""Times that an overflowing fp16 gradient scale is halved: from 65,536 to almost nothing."""
ItemT = TypeVar("ItemT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)


class Objective(Protocol[ItemT_contra]):
    """Adds the gradients of one optimiser batch to the weights and reports the batch's means."""

    seed: int

    def backward(self, items: Sequence[ItemT_contra], scale: Callable[[Tensor], Tensor] = ...) -> Terms: ...


@dataclass(frozen=True)
class Schedule:
    """How many steps, and which items each one takes: a pure function of seed, epoch and step."""

    items: int
    batch_size: int
    steps: int
    seed: int

    @classmethod
    def of(cls, items: int, settings: OptimiserSettings) -> Schedule:
        """``--max-steps``, or ``--epochs``, or one epoch of at most 10,000 steps."""
        assert settings.batch_size is not None
        per_epoch = math.ceil(items / settings.batch_size)
        if settings.max_steps is not None:
            steps = settings.max_steps
        elif settings.epochs is not None:
            steps = max(1, round(settings.epochs * per_epoch))
        else:
            steps = min(per_epoch, MAX_STEPS)
        return cls(items, settings.batch_size, steps, settings.seed)

    def batches(self, start: int = 0) -> Iterator[tuple[int, Sequence[int]]]:
        """From step ``start`` on: the epoch, and the numbers of the step's items."""
        per_epoch = math.ceil(self.items / self.batch_size)
        for step in range(start, self.steps):
            epoch, within = divmod(step, per_epoch)
            if step == start or within == 0:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.items)
            yield epoch, order[within * self.batch_size : (within + 1) * self.batch_size].tolist()


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that the step in hand is finished and kept; the second stops at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


@dataclass
class Trainer(Generic[ItemT]):
    """Trains ``model`` in ``folder``, from the newest checkpoint there if there is one.

    Attributes:
        pick: the items of a step, from the epoch and their numbers.
        dtype: compute dtype; trainable weights stay fp32, so that small updates are not rounded away.
    """

    model: PreTrainedModel
    objective: Objective[ItemT]
    schedule: Schedule
    pick: Callable[[int, Sequence[int]], Sequence[ItemT]]
    settings: OptimiserSettings
    folder: Path
    dtype: torch.dtype
    history: list[dict[str, Any]] = field(default_factory=list)
    resumed_at: int = 0

    def __post_init__(self) -> None:
        assert self.settings.learning_rate is not None
        weights = list(checkpoints.trainable(self.model).values())
        self.device = weights[0].device
        self.optimiser = torch.optim.AdamW(
            weights,
            lr=self.settings.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=self.settings.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def train(self, bar: Bar) -> list[dict[str, Any]]:
        """Run to the last step; the history, one row an optimiser step.

        Raises ``LlaraError`` where a loss or gradient is not finite; the last good checkpoint is kept.
        """
        self.resumed_at = start = self._resume()
        bar.advance(start)
        self.model.train()
        saved = time.monotonic()
        with (self.folder / HISTORY).open("a", encoding="utf-8") as log, deferred_interrupt() as interrupted:
            for step, (epoch, numbers) in enumerate(self.schedule.batches(start), start + 1):
                row = self._step(step, self.pick(epoch, numbers))
                self.history.append(row)
                log.write(json.dumps(row) + "\n")
                log.flush()
                bar.show(f"loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}")
                bar.advance(1)
                if interrupted.is_set() or self._save_is_due(step, saved):
                    checkpoints.save(self.folder, self.model, self.optimiser, step)
                    saved = time.monotonic()
                if interrupted.is_set():
                    raise KeyboardInterrupt
        return self.history

    def _step(self, step: int, items: Sequence[ItemT]) -> dict[str, Any]:
        # every step's randomness (dropout) follows from its number, so a resumed run draws what the whole one did
        torch.manual_seed((self.settings.seed << 32) + step)
        self.objective.seed = (self.settings.seed << 32) + (step << 16)
        terms, norm = self._gradients(items)
        for _ in range(FP16_TRIES):
            if math.isfinite(norm) or not self.scaler.is_enabled():
                break
            self.scaler.step(self.optimiser)  # skips the update, as the scaled gradient overflowed ...
            self.scaler.update()  # ... and halves the scale for another try at the same batch
            terms, norm = self._gradients(items)
        if not math.isfinite(terms.loss) or not math.isfinite(norm):
            raise LlaraError(
                f"step {step}: the loss is {terms.loss}, the gradient's norm {norm}; lower --learning-rate"
            )
        row = _row(step, terms, self.rates.get_last_lr()[0], norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.rates.step()
        return row

    def _gradients(self, items: Sequence[ItemT]) -> tuple[Terms, float]:
        """Gradients of a batch in the weights, unscaled and clipped; their norm before clipping."""
        self.optimiser.zero_grad(set_to_none=True)
        with self._autocast():
            terms = self.objective.backward(items, self.scaler.scale)
        self.scaler.unscale_(self.optimiser)
        return terms, float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _save_is_due(self, step: int, saved: float) -> bool:
        """Every ``save_every`` steps; left out: every ten minutes."""
        if step == self.schedule.steps:
            return False
        if self.settings.save_every is not None:
            return step % self.settings.save_every == 0
        return time.monotonic() - saved > 600

    def _resume(self) -> int:
        for group in self.optimiser.param_groups:
            group["initial_lr"] = group["lr"]
        done = checkpoints.restore(self.folder, self.model, self.optimiser)
        warmup = int(self.settings.warmup_ratio * self.schedule.steps)
        self.rates = get_linear_schedule_with_warmup(self.optimiser, warmup, self.schedule.steps, last_epoch=done - 1)
        path = self.folder / HISTORY
        rows = (
            [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        )
        self.history = rows[:done]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.history))
        return done


def _row(step: int, terms: Terms, rate: float, norm: float) -> dict[str, Any]:
    """A history row, in the order and under the names of the command line's contract."""
    return {
        "step": step,
        "loss": terms.loss,
        "ebae": terms.ebae,
        "ebar": terms.ebar,
        "lm": terms.lm,
        "learning_rate": rate,
        "grad_norm": norm,
        "texts": terms.texts,
        "tokens": terms.tokens,
    }
