"""The tokens that embeddings and positions are to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Targets:
    """The targets X of some embeddings, flat: ``ids`` (sum of |X|,), ``starts`` (embeddings + 1,)."""

    def __init__(self, sets: Sequence[Sequence[int] | NDArray[Any]]) -> None:
        self.ids = np.concatenate([np.asarray(ids, np.int64) for ids in sets]) if sets else np.zeros(0, np.int64)
        self.starts = np.concatenate([[0], np.cumsum([len(ids) for ids in sets], dtype=np.int64)])

    def part(self, part: slice, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of the embeddings in ``part``: flat ids, the embedding each belongs to (from 0), |X| of each embedding."""
        starts = self.starts[part.start : part.stop + 1]
        counts = torch.from_numpy(np.diff(starts)).to(device)
        ids = torch.from_numpy(self.ids[starts[0] : starts[-1]]).to(device)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=device), counts, output_size=len(ids))
        return ids, owner, counts


class NextTokens:
    """One target each: ``next_ids`` (positions,), on the device where the loss is computed."""

    def __init__(self, next_ids: Tensor) -> None:
        self.next_ids = next_ids

    def part(self, part: slice, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """As ``Targets.part``: each position's own id, and ones."""
        ids = self.next_ids[part].to(device)
        return ids, torch.arange(len(ids), device=device), torch.ones_like(ids)


Wanted: TypeAlias = Targets | NextTokens
"""What rows are to predict."""
