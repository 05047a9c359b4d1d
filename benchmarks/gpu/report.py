"""A kit's results in words: a table for the docs, and a shorter one for the end of a run.

python benchmarks/gpu/report.py OUT/results.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LEFT_OUT = {"stage", "setting", "time", "size", "texts", "tokens", "first_s", "first_step_s"}
"""What the column of figures does without."""
MOST = 10_000
"""Characters of the summary at most."""
WHOLE = "whole stage"


def number(value: float) -> str:
    """With three significant digits, and commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def told(value: Any) -> str:
    """A figure in words."""
    if isinstance(value, dict):
        return " ".join(f"{key} {told(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " / ".join(map(told, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return number(value)


def figures(row: Row) -> str:
    """What a line found, in words."""
    return ", ".join(f"{key} {told(value)}" for key, value in row.items() if key not in LEFT_OUT and value is not None)


def lines(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Stage, setting and figures: tests that passed or were skipped are counted, stages that ended well left out."""
    found = []
    for outcome in ("passed", "skipped"):
        if count := sum(outcome in row for row in rows if row["stage"] == "tests"):
            found.append(("tests", outcome, str(count)))
    for row in rows:
        counted = row["stage"] == "tests" and ("passed" in row or "skipped" in row)
        if not counted and (row["setting"] != WHOLE or "failed" in row or "skipped" in row):
            found.append((row["stage"], row["setting"], figures(row)))
    return found


@dataclass(frozen=True)
class Goal:
    """The highest ``figure`` of settings that have all words of ``ours``, over that of those with all of ``theirs``.

    Settings ``OTHERWISE`` do not count: they train fewer weights, or multiply in another dtype than the rivals.
    """

    name: str
    wanted: float
    figure: str
    ours: Sequence[str]
    theirs: Sequence[str] = ()
    bound: str = "at least"

    def found(self, rows: Sequence[Row]) -> float | None:
        """None if one of the two is not known."""
        own = self._best(rows, self.ours)
        if not self.theirs:
            return own
        other = self._best(rows, self.theirs)
        return own / other if own and other else None

    def _best(self, rows: Sequence[Row], words: Sequence[str]) -> float | None:
        places = ((f"{row['stage']}: {row['setting']}", row) for row in rows if self.figure in row)
        fitting = [
            row[self.figure]
            for place, row in places
            if all(word in place for word in words) and not any(word in place for word in OTHERWISE)
        ]
        return max(fitting, default=None)


RATE = "tokens_per_s"
OTHERWISE = ("float8", "qlora")
GOALS = [
    Goal("pretraining 7B, MFU", 0.5, "mfu", ["7B, llara", "full texts"]),
    Goal("pretraining 135M, MFU", 0.2, "mfu", ["135M, llara", "full texts"]),
    *(
        Goal(f"pretraining {shape}, {kind} texts, over the authors' way", 3, RATE, [f"{shape}, llara", f"{kind} texts"],
             [f"{shape}, authors", f"{kind} texts"])
        for shape, kind in (("135M", "full"), ("135M", "mixed"), ("7B", "full"))
    ),
    *(
        Goal(f"encoding {shape}, over sentence-transformers", 1.5, RATE, ["encode", f"{shape}, llara"],
             ["encode", f"{shape}, sentence-transformers"])
        for shape in ("135M", "7B")
    ),
    Goal("exact search of one query, over its floor", 2, "times_floor", ["exact: fp32, 1 queries"], bound="at most"),
    Goal("fine-tuning 135M, over the cached loss", 2, RATE, ["fine-tune", "135M, llara"],
         ["fine-tune", "135M, sentence-transformers"]),
]  # fmt: skip


def goals(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Each goal with what is wanted and what was found."""
    found = [(goal, goal.found(rows)) for goal in GOALS]
    return [
        (goal.name, f"{goal.bound} {number(goal.wanted)}", "-" if value is None else number(value))
        for goal, value in found
    ]


def table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    every = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in every)


def markdown(rows: Sequence[Row]) -> str:
    """Goals, then every line."""
    wanted = table(["goal", "wanted", "found"], goals(rows))
    return f"{wanted}\n\n{table(['stage', 'setting', 'figures'], lines(rows))}"


def summary(rows: Sequence[Row]) -> str:
    """The same in at most ``MOST`` characters: the longest lines are cut as far as that takes."""
    found = [": ".join(line) for line in lines(rows)]
    found += [f"goal: {name}: {value} ({wanted})" for name, wanted, value in goals(rows)]
    width = max(map(len, found), default=0)
    while sum(min(len(line), width) + 1 for line in found) > MOST:
        width -= 1
    return "\n".join(line[:width] for line in found)


if __name__ == "__main__":
    print(markdown([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
