"""Training history: rows on disk, the progress bar's text, experiment trackers, and a plot of the losses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator

from llara_cli.core.artifacts import write_atomically
from llara_cli.training import checkpoints

HISTORY, CURVE = "history.jsonl", "loss.png"
LOSSES = {"loss": "loss", "ebae": "EBAE", "ebar": "EBAR", "lm": "LM"}
"""The losses of a row, and their labels on the screen."""


class History:
    """The rows of ``history.jsonl``, one per optimizer step; only the first process writes.

    A context manager: the file is open inside it.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path = folder / HISTORY
        self.rows: list[dict[str, Any]] = []
        self._accelerator = accelerator
        self._writes = accelerator.is_main_process
        self._file: IO[str] | None = None
        self._started, self._tokens = time.monotonic(), 0

    def resume(self, done: int) -> None:
        """Keep the first ``done`` rows of an earlier run, and drop the rest, which its last checkpoint does not have.

        Raises ``LlaraError`` if one of them is missing.
        """
        self.rows = list(islice(_whole_rows(self.path), done))
        if [row.get("step") for row in self.rows] != list(range(1, done + 1)):
            why = f"it must have one row for each of the checkpoint's {done} steps"
            raise checkpoints.damaged(self.path, self.path.parent, why)
        self._accelerator.wait_for_everyone()  # no process writes before all have read
        if self._writes:
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def __enter__(self) -> History:
        self._started = time.monotonic()
        self._file = self.path.open("a", encoding="utf-8") if self._writes else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def sync(self) -> None:
        """Flush the rows to disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def add(self, row: dict[str, Any]) -> str:
        """Add a row; returns its text for the progress bar."""
        self.rows.append(row)
        self._tokens += row["tokens"]
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        logged = {name: value for name, value in row.items() if name != "step" and value is not None}
        self._accelerator.log(logged, step=row["step"])
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        losses = " ".join(f"{label} {_short(row[name])}" for name, label in LOSSES.items() if row[name] is not None)
        return f"{losses} {rate:,.0f} tokens/s"


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file up to an incomplete one, which a killed process may leave."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict):
            return
        yield row


def _short(loss: float) -> str:
    """Two decimals; four below 1, as fine-tuning losses usually are."""
    return f"{loss:.2f}" if loss >= 1 else f"{loss:.4f}"


def draw_curve(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The losses of ``rows`` over steps, as a PNG."""
    # not pyplot, which would choose a window system
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, label in LOSSES.items():
        points = [(row["step"], row[name]) for row in rows if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) == 1 else "")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
