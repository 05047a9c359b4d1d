"""Which sequences share a row, which rows share a forward, which process runs it: pure functions of lengths.

Two layouts. ``packed``: rows are filled with many sequences, which the mask keeps apart. ``bucketed``: one sequence a
row. In both, rows of like length make a forward, so that little of what is computed is padding: docs/design/layouts.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llara_cli.model.sequences import row_width

LayoutName = Literal["packed", "bucketed"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
CPU_FORWARD_TOKENS, MOST_FORWARD_TOKENS = 16, 4096
"""Overhead of a forward, in tokens: on a CPU, and at most on a GPU."""
LAUNCHED = 512 * 7_000_000_000
"""Estimated work of a GPU while the host launches the kernels of one forward, in tokens times parameters."""
Rows = list[list[int]]
"""The rows of one forward: numbers of the sequences in each."""


def forward_tokens(device: str, parameters: int) -> int:
    """Overhead of a decoder's forward, in tokens.

    ``device``: the device's type. Little on a CPU. A GPU idles until the host has launched a forward's kernels: the
    larger the model, the fewer tokens could be computed in that time.
    """
    if device == "cpu":
        return CPU_FORWARD_TOKENS
    return max(1, min(MOST_FORWARD_TOKENS, LAUNCHED // max(1, parameters)))


def pack(lengths: Sequence[int], capacity: int) -> Rows:
    """Pack sequences into rows of at most ``capacity`` tokens: first fit, longest first; a longer one has its own row.

    Returns the sequence numbers of each row, longest sequence first.
    """
    rows: Rows = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, left in enumerate(room) if left >= lengths[number]), None)
        if row is None:
            rows.append([])
            room.append(max(capacity, lengths[number]))
            row = len(rows) - 1
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


def pack_evenly(lengths: Sequence[int], capacity: int, multiple: int = 1, processes: int = 1) -> Rows:
    """``pack`` into rows of about equal length: as few rows as possible, and the same number for each process.

    They are filled up to one width, a multiple of ``multiple``, where that is no more than ``capacity``; the rest goes
    into a last row. So little is padding, and few widths occur.

    Returns the sequence numbers of each row, longest row first.
    """
    count = processes * -(-sum(lengths) // (capacity * processes))
    width = -(-sum(lengths) // max(1, count))
    width += -width % multiple
    while len(rows := pack(lengths, min(width, capacity))) > count and width < capacity:
        width += multiple
    return sorted(rows, key=lambda row: -sum(lengths[number] for number in row))


def micro_batches(row_lengths: Sequence[int], budget: int, forward_tokens: int) -> list[list[int]]:
    """Group rows into forwards of at most ``budget`` tokens, padding counted (one row at least); longest rows first.

    Of all ways to cut the rows, sorted by length, the one of least cost: computed tokens, plus ``forward_tokens`` for
    each forward.
    """
    order = sorted(range(len(row_lengths)), key=lambda i: (-row_lengths[i], i))
    widths = [row_lengths[row] for row in order]
    cost = np.zeros(len(order) + 1)
    end = [0] * len(order)
    for start in reversed(range(len(order))):
        most = min(len(order) - start, max(1, budget // widths[start]))
        ways = widths[start] * np.arange(1, most + 1) + cost[start + 1 : start + most + 1]
        best = int(ways.argmin())
        cost[start], end[start] = ways[best] + forward_tokens, start + best + 1
    batches = []
    start = 0
    while start < len(order):
        batches.append(order[start : end[start]])
        start = end[start]
    return batches


@dataclass(frozen=True)
class Batching:
    """How the sequences of an optimizer batch become forwards of at most ``budget`` tokens.

    Attributes:
        layout: ``packed`` or ``bucketed``.
        budget: tokens of one forward, padding counted; a longer sequence has a forward of its own.
        row_tokens: tokens of a packed row; None: each forward is one row.
        multiple: a row's width is rounded up to a multiple of this many tokens (``sequences.row_width``).
        switch: positions above which the model uses other rotary factors (``architecture.rope_switch``): longer
            sequences never share a forward with others. None: the factors are always the same.
        forward_tokens: overhead of a forward, in tokens.
    """

    layout: LayoutName
    budget: int
    row_tokens: int | None = None
    multiple: int = 1
    switch: int | None = None
    forward_tokens: int = CPU_FORWARD_TOKENS

    def forwards(self, lengths: Sequence[int], processes: int = 1, *, spans: Sequence[int] | None = None) -> list[Rows]:
        """Split a batch into forwards, at least one for each of ``processes`` where there are enough rows.

        ``spans``: positions of each sequence, which are fewer than its tokens where branches share them.
        """
        budget = self.budget
        if processes > 1:
            budget = max(1, min(budget, -(-sum(lengths) // processes)))
        if self.switch is None:
            return self._forwards(lengths, budget, processes)
        spans = lengths if spans is None else spans
        found = []
        for beyond in (True, False):
            numbers = [number for number, span in enumerate(spans) if (span > self.switch) == beyond]
            for rows in self._forwards([lengths[number] for number in numbers], budget, processes):
                found.append([[numbers[place] for place in row] for row in rows])
        return found

    def _forwards(self, lengths: Sequence[int], budget: int, processes: int) -> list[Rows]:
        """``budget``: small enough that each process has a forward."""
        if self.layout == "bucketed":
            rows = [[number] for number in range(len(lengths))]
        elif self.row_tokens is None:
            capacity = max(self.budget - self.budget % self.multiple, min(self.budget, self.multiple))
            return [[row] for row in pack_evenly(lengths, capacity, self.multiple, processes)]
        else:
            rows = pack(lengths, min(self.row_tokens, budget))
        row_lengths = [sum(lengths[number] for number in row) for row in rows]
        return [[rows[row] for row in batch] for batch in micro_batches(row_lengths, budget, self.forward_tokens)]


def cut(rows: Rows, most: int) -> list[Rows]:
    """Split a forward into parts of at most ``most`` sequences each, in its order."""
    parts: list[Rows] = []
    room = 0
    for row in rows:
        for at in range(0, len(row), most):
            piece = row[at : at + most]
            if len(piece) > room:
                parts.append([])
                room = most
            parts[-1].append(piece)
            room -= len(piece)
    return parts


def computed_tokens(lengths: Sequence[int], forwards: Sequence[Rows], multiple: int = 1) -> int:
    """Tokens that the forwards compute, padding included; ``multiple``: see ``row_width``."""
    widths = (row_width(max(sum(lengths[number] for number in row) for row in rows), multiple) for rows in forwards)
    return sum(len(rows) * width for rows, width in zip(forwards, widths, strict=True))


def assign_to_ranks(costs: Sequence[int], processes: int) -> list[list[int]]:
    """Assign forwards to processes, evenly by cost, the same number to each: all gather sharded weights together.

    A process that would have fewer is given ``-1``: a forward whose result does not count.
    """
    ranks: list[list[int]] = [[] for _ in range(processes)]
    load = [0] * processes
    for number in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        lightest = min(range(processes), key=lambda p: (load[p], len(ranks[p]), p))
        ranks[lightest].append(number)
        load[lightest] += costs[number]
    most = max(map(len, ranks), default=0)
    return [rank + [-1] * (most - len(rank)) for rank in ranks]
