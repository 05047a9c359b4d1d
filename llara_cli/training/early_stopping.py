"""Early stopping: evaluates on a dev set during training, keeps the best weights, and stops the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from llara_cli.core.artifacts import write_atomically
from llara_cli.core.protocols import Role, Vectors
from llara_cli.training import checkpoints

Encode = Callable[[Sequence[str], Role], Vectors]
SCORES = "dev.jsonl"
EVALUATIONS = 10
"""Evaluations per run unless ``dev_every`` is set."""


@dataclass(frozen=True)
class TrainingPlace:
    """Where and how a run trains.

    Attributes:
        accelerator: the processes.
        dtype: compute dtype.
        folder: of the model in the making.
        budget: tokens of one forward.
        steps: of the whole run.
    """

    accelerator: Accelerator
    dtype: torch.dtype
    folder: Path
    budget: int
    steps: int


class JudgedQueries(Protocol):
    """Queries with judgments, and their documents."""

    @property
    def metric(self) -> str:
        """Its name."""

    def inputs(self) -> list[dict[str, Any]]:
        """Its files: names and digests."""

    def score(self, encode: Encode) -> float:
        """Score of the encoder, higher is better."""


@dataclass
class EarlyStopping:
    """Evaluates a run in ``folder`` regularly, keeps the best weights, and decides when to stop.

    Attributes:
        metric: the name of the score.
        score: scores the current model, higher is better.
        every: steps between evaluations.
        patience: evaluations without a new best after which the run stops; None: never early.
        writes: whether this process writes files.
        rows: the scores so far: ``{"step", METRIC}``.
    """

    folder: Path
    model: nn.Module
    metric: str
    score: Callable[[], float]
    every: int
    patience: int | None
    writes: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    _safe: set[int] = field(default_factory=set)
    """The best step at the last checkpoint, if any: a run resumed from there needs its weights."""

    def resume(self, rows: Sequence[dict[str, Any]]) -> None:
        """Resume from the scores in the checkpoint; later evaluations are repeated.

        Raises ``LlaraError`` if the weights of the best of them are missing or damaged.
        """
        self.rows = list(rows)
        if self.best is not None:
            checkpoints.check_best(self.folder, self.best["step"])
        self.checkpoint_saved()
        self._write()

    @property
    def best(self) -> dict[str, Any] | None:
        """The best row; the first of equal ones."""
        return max(self.rows, key=lambda row: (row[self.metric], -row["step"]), default=None)

    @property
    def exhausted(self) -> bool:
        """Whether there was no new best for ``patience`` evaluations."""
        if self.patience is None or self.best is None:
            return False
        later = [row for row in self.rows if row["step"] > self.best["step"]]
        return len(later) >= self.patience

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether to evaluate the model after ``step``."""
        return last or step % self.every == 0

    def evaluate(self, step: int) -> str:
        """Score the model, and keep its weights if it is the best so far; returns text for the progress bar."""
        self.rows.append({"step": step, self.metric: self.score()})
        if self.best is self.rows[-1]:
            checkpoints.keep_best(self.folder, self.model, step, writes=self.writes)
            self._keep(self._safe | {step})
        self._write()
        return f"dev {self.metric} {self.rows[-1][self.metric]:.4f}"

    def checkpoint_saved(self) -> None:
        """Remove weights that only an earlier checkpoint needed."""
        self._safe = {self.best["step"]} if self.best is not None else set()
        self._keep(self._safe)

    def restore_best(self) -> dict[str, Any]:
        """Load the best weights into the model; returns the ``dev`` part of the result.

        Raises ``LlaraError`` if they are damaged.
        """
        assert self.best is not None
        checkpoints.take_best(self.folder, self.model, self.best["step"])
        return {"metric": self.metric, "best": self.best[self.metric], "step": self.best["step"], "scores": self.rows}

    def _write(self) -> None:
        if self.writes:
            write_atomically(self.folder / SCORES, "".join(json.dumps(row) + "\n" for row in self.rows))

    def _keep(self, steps: set[int]) -> None:
        if self.writes:
            checkpoints.drop_best(self.folder, steps)
