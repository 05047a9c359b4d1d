"""Exact top k: equal scores by ascending row, on any device and in any block size."""

from __future__ import annotations

from math import isqrt

import torch

from llara_backends.index_vectors import padded_hits
from llara_cli.core.protocols import Hits

LARGEST_GROUP = 256
"""Most rows per group. ``best_of_scores`` takes scores of a multiple of this many rows."""
_LAST_ROW = (1 << 32) - 1


def keys_of(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """int64 keys whose descending order is by descending score, then ascending row. Overwrites the scores.

    No two keys are equal, so the result of top-k, which is unspecified for equal numbers, is unique.

    Args:
        scores: (queries, n) float32.
        rows: int64, of their shape or one that broadcasts to it.
    """
    # Adding 0 turns -0.0 into 0.0, which is equal but has other bits. In place: these are the largest tensors here.
    keys = _flipped(scores.add_(0.0).view(torch.int32)).to(torch.int64)
    return keys.bitwise_left_shift_(32).add_(_LAST_ROW - rows)


def _flipped(bits: torch.Tensor) -> torch.Tensor:
    """Bits of floats as integers of the same order, and back: negative floats have the reverse order."""
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def rows_of(keys: torch.Tensor) -> torch.Tensor:
    """The rows in keys."""
    return _LAST_ROW - (keys & _LAST_ROW)


def best_of(keys: torch.Tensor, k: int) -> torch.Tensor:
    """(queries, at most k): the largest keys of each query, in any order."""
    return keys.topk(min(k, keys.shape[1]), dim=1, sorted=False).values


def group_size(width: int, k: int) -> int:
    """Rows per group, a power of two: about as many groups as rows in k groups, which is the least work."""
    return max(1, min(LARGEST_GROUP, 1 << isqrt(width // k).bit_length() >> 1))


def keys_held(width: int, k: int) -> int:
    """Keys per query that ``best_of_scores`` computes from ``width`` scores."""
    group = group_size(width, k)
    return width if group == 1 else width // group + k * group


def best_of_scores(scores: torch.Tensor, first_row: int, k: int) -> torch.Tensor:
    """The keys of the k best scores of each query, in any order. Overwrites the scores.

    Scores are read once: groups of neighboring rows are ranked by their largest score, equal ones by ascending row, and
    the k best groups contain the k best scores. A score outside them is beaten by the largest of each of the k: it is
    not larger, and if it is equal, its row comes later.

    Args:
        scores: (queries, n) float32, n a multiple of ``LARGEST_GROUP``.
        first_row: the row of the first column.
    """
    device, group = scores.device, group_size(scores.shape[1], k)
    if group == 1:
        return best_of(keys_of(scores, first_row + torch.arange(scores.shape[1], device=device)), k)
    groups = scores.unflatten(1, (-1, group))
    chosen = rows_of(best_of(keys_of(groups.amax(dim=2), torch.arange(groups.shape[1], device=device)), k))[:, :, None]
    rows = first_row + chosen * group + torch.arange(group, device=device)
    return best_of(keys_of(groups.gather(1, chosen.expand_as(rows)).flatten(1), rows.flatten(1)), k)


def hits_of(keys: torch.Tensor, k: int) -> Hits:
    """``Hits`` of (queries, at most k) keys."""
    keys = keys.sort(dim=1, descending=True).values
    scores = _flipped((keys >> 32).to(torch.int32)).view(torch.float32)
    return padded_hits(scores.cpu().numpy(), rows_of(keys).cpu().numpy(), k)
