"""A dev set beside training: the best weights are kept, and a run that gets no better stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from llara_cli.artifacts import write_atomically
from llara_cli.protocols import Role, Vectors
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

    def resume(self, done: int) -> None:
        """Take up the scores of an earlier run's first ``done`` steps."""
        path = self.folder / SCORES
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["step"] <= done]

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

    def look(self, step: int, *, last: bool) -> str | None:
        """Score the model where it is due, and keep its weights where it is the best so far; what the bar says."""
        if step % self.every and not last:
            return None
        self.rows.append({"step": step, self.metric: self.score()})
        if self.best is self.rows[-1]:
            checkpoints.keep_best(self.folder, self.model, step, writes=self.writes)
        if self.writes:
            write_atomically(self.folder / SCORES, "".join(json.dumps(row) + "\n" for row in self.rows))
        return f"dev {self.metric} {self.rows[-1][self.metric]:.4f}"

    def restore_best(self) -> dict[str, Any]:
        """Give the model its best weights; what the result says of it."""
        assert self.best is not None
        checkpoints.take_best(self.folder, self.model)
        return {"metric": self.metric, "best": self.best[self.metric], "step": self.best["step"], "scores": self.rows}
