"""The k best scores, ties by ascending row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llara_backends import index_topk as topk


def test_keys_fall_with_the_score_and_then_the_row() -> None:
    """0.0 and -0.0 are equal numbers of different bits."""
    scores = torch.tensor([[-0.0, 0.0, -1e-40, 1e-40, -2.0, 2.0, -torch.inf, torch.inf, 2.0, 0.0]])
    keys = topk.keys_of(scores, torch.arange(100, 110))
    assert keys.argsort(dim=1, descending=True).tolist() == [[7, 5, 8, 3, 0, 1, 9, 2, 4, 6]]
    assert topk.rows_of(keys).tolist() == [list(range(100, 110))]


@pytest.mark.parametrize("values", [2, 50, 10**6])
@pytest.mark.parametrize("k", [1, 2, 7, 60, 300, 1024, 2000])
def test_the_best_are_those_of_a_stable_sort(values: int, k: int) -> None:
    """Few different values: most groups are equal to others, and most cuts are between equal scores."""
    scores = np.random.default_rng(k).integers(-values, values, (5, 1024)).astype(np.float32)
    scores[:, ::3] *= np.float32(-0.0 if values == 2 else 1)
    hits = topk.hits_of(topk.best_of_scores(torch.from_numpy(scores.copy()), 10, k), k)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert (hits.rows[:, :1024] == expected + 10).all()
    assert (hits.scores[:, :1024] == np.take_along_axis(scores, expected, axis=1)).all()
    assert hits.rows.shape == (5, k)


@pytest.mark.parametrize("k", [1, 10, 100, 1000])
def test_little_of_many_scores_becomes_keys(k: int) -> None:
    assert topk.keys_held(1 << 20, k) <= 2.2 * ((1 << 20) * k) ** 0.5 + (1 << 20) // topk.LARGEST_GROUP
