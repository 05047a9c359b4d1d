"""The file of results: one JSON object a line, written as soon as it is known."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

DIGITS = 5
"""Significant digits of a figure."""


def _rounded(value: Any) -> Any:
    """As it is written: nothing that JSON has no word for."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


class Results:
    """``results.jsonl`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"

    def add(self, stage: str, setting: str, **figures: Any) -> None:
        """Append a line: the stage, what it tried, what it found, and the time of day in seconds since 1970."""
        row = {"stage": stage, "setting": setting, **_rounded(figures), "time": round(time.time(), 1)}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Every line so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def find(self, stage: str, setting: str, figure: str) -> Any:
        """The newest figure of that name; None if there is none."""
        rows = (row for row in self.rows() if (row["stage"], row["setting"]) == (stage, setting))
        return next((row[figure] for row in reversed(list(rows)) if figure in row), None)
