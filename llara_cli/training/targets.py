"""Target tokens of embeddings and positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llara_cli.model.to_device import to_device

Predicted: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Targets of some rows: flat ids, the row of each (from 0), the number of ids of each row."""


class Targets:
    """The targets X of some embeddings, flat: ``ids`` (sum of |X|,), ``starts`` (embeddings + 1,).

    Raises:
        ValueError: an embedding has none.
    """

    def __init__(self, sets: Sequence[Sequence[int] | NDArray[Any]]) -> None:
        counts = [len(ids) for ids in sets]
        if 0 in counts:
            raise ValueError("an embedding without targets")
        self.ids = np.concatenate([np.asarray(ids, np.int64) for ids in sets]) if sets else np.zeros(0, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def extremes(self) -> tuple[int, int] | None:
        """The lowest and the highest id, if there are any."""
        return (int(self.ids.min()), int(self.ids.max())) if len(self.ids) else None

    def part(self, part: slice, device: torch.device) -> Predicted:
        """Targets of the embeddings in ``part``."""
        starts = self.starts[part.start : part.stop + 1]
        counts = to_device(np.diff(starts), device)
        ids = to_device(self.ids[starts[0] : starts[-1]], device)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=device), counts, output_size=len(ids))
        return ids, owner, counts


class NextTokens:
    """One target each: ``next_ids`` (positions,), on the device where the loss is computed."""

    def __init__(self, next_ids: Tensor) -> None:
        self.next_ids = next_ids

    def __len__(self) -> int:
        return len(self.next_ids)

    def extremes(self) -> tuple[int, int] | None:
        """As ``Targets.extremes``, but None for ids on a GPU, to avoid waiting for it."""
        known = self.next_ids.device.type == "cpu" and len(self.next_ids) > 0
        return (int(self.next_ids.min()), int(self.next_ids.max())) if known else None

    def part(self, part: slice, device: torch.device) -> Predicted:
        """Targets of the positions in ``part``: one id each."""
        ids = self.next_ids[part].to(device)
        return ids, torch.arange(len(ids), device=device), torch.ones_like(ids)


Wanted: TypeAlias = Targets | NextTokens
"""Targets of rows."""


def check_targets(targets: Wanted, rows: int, vocabulary: int) -> None:
    """Raise ``ValueError`` for targets that do not fit the rows of logits.

    Raises:
        ValueError: their number is not that of the rows.
        IndexError: a target is not in the vocabulary; next tokens on a GPU are not checked.
    """
    if len(targets) != rows:
        raise ValueError(f"targets of {len(targets)} embeddings or positions for {rows} rows")
    extremes = targets.extremes()
    if extremes is not None and not 0 <= extremes[0] <= extremes[1] < vocabulary:
        raise IndexError(f"targets from {extremes[0]} to {extremes[1]} for a vocabulary of {vocabulary}")
