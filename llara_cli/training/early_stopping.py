"""A dev set beside training: the best weights are kept, and a run that gets no better stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from llara_cli.core.artifacts import write_atomically
from llara_cli.core.protocols import Role, Vectors
from llara_cli.training import checkpoints

Encode = Callable[[Sequence[str], Role], Vectors]
SCORES = "dev.jsonl"
PARTS = 10
"""How often a run is looked at unless ``--dev-every`` says otherwise."""


class Validation(Protocol):
    """Judged queries and their collection."""

    @property
    def metric(self) -> str:
        """Its name."""

    def inputs(self) -> list[dict[str, Any]]:
        """Its files: names and digests."""

    def score(self, encode: Encode) -> float:
        """How good the encoder is, higher is better."""


@dataclass
class Watch:
    """Scores of a run in ``folder`` every so many steps; ``patience`` looks without a better one end it."""

    folder: Path
    model: nn.Module
    metric: str
    score: Callable[[], float]
    every: int
    patience: int | None
    writes: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    _safe: set[int] = field(default_factory=set)
    """The best step at the last checkpoint, if any: a run that goes on from there needs its weights."""

    def resume(self, rows: Sequence[dict[str, Any]]) -> None:
        """Go on from the scores that the checkpoint holds; what was found after it will be found again.

        Raises ``LlaraError`` where the weights of the best of them are missing or damaged.
        """
        self.rows = list(rows)
        if self.best is not None:
            checkpoints.check_best(self.folder, self.best["step"])
        self.checkpoint_saved()
        self._write()

    @property
    def best(self) -> dict[str, Any] | None:
        """The best row, the earlier of equals."""
        return max(self.rows, key=lambda row: (row[self.metric], -row["step"]), default=None)

    @property
    def exhausted(self) -> bool:
        """Whether nothing got better for as long as one is patient."""
        if self.patience is None or self.best is None:
            return False
        later = [row for row in self.rows if row["step"] > self.best["step"]]
        return len(later) >= self.patience

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether to look at the model after ``step``."""
        return last or step % self.every == 0

    def look(self, step: int) -> str:
        """Score the model, and keep its weights where it is the best so far; what the bar says."""
        self.rows.append({"step": step, self.metric: self.score()})
        if self.best is self.rows[-1]:
            checkpoints.keep_best(self.folder, self.model, step, writes=self.writes)
            self._keep(self._safe | {step})
        self._write()
        return f"dev {self.metric} {self.rows[-1][self.metric]:.4f}"

    def checkpoint_saved(self) -> None:
        """Forget the weights that only an earlier checkpoint needed: no run will go on from there any more."""
        self._safe = {self.best["step"]} if self.best is not None else set()
        self._keep(self._safe)

    def restore_best(self) -> dict[str, Any]:
        """Give the model its best weights; what the result says of it. Raises ``LlaraError`` where they are damaged."""
        assert self.best is not None
        checkpoints.take_best(self.folder, self.model, self.best["step"])
        return {"metric": self.metric, "best": self.best[self.metric], "step": self.best["step"], "scores": self.rows}

    def _write(self) -> None:
        if self.writes:
            write_atomically(self.folder / SCORES, "".join(json.dumps(row) + "\n" for row in self.rows))

    def _keep(self, steps: set[int]) -> None:
        if self.writes:
            checkpoints.drop_best(self.folder, steps)
