"""The blocks that FlexAttention visits hold whatever a query may see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llara_cli.model.batching import Batching, pack
from llara_cli.model.block_mask import BLOCK_TOKENS, block_mask, block_table, row_multiple
from llara_cli.model.sequences import TokenRows, Tree, place_in_rows, row_width, visible

trees = st.lists(
    st.builds(
        lambda trunk, branches: Tree([5] * trunk, [[6] * branch for branch in branches]),
        st.integers(1, 400),
        st.lists(st.integers(1, 40), max_size=3),
    ),
    min_size=1,
    max_size=6,
)
windows = st.one_of(st.none(), st.integers(1, 300))


def blocks_seen(token_rows: TokenRows, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Blocks in which any pair is seen, and in which all are; rows are filled up to whole blocks with padding."""
    rows, width = token_rows.ids.shape
    more = -width % BLOCK_TOKENS
    seen = np.pad(visible(token_rows, window), ((0, 0), (0, more), (0, more)))
    pairs = seen.reshape(rows, -1, BLOCK_TOKENS, (width + more) // BLOCK_TOKENS, BLOCK_TOKENS)
    return pairs.any(axis=(2, 4)), pairs.all(axis=(2, 4))


@settings(max_examples=60, deadline=None)
@given(trees=trees, window=windows, capacity=st.integers(1, 1200), multiple=st.sampled_from([1, BLOCK_TOKENS]))
def test_no_block_is_missed_and_full_ones_are_full(
    trees: list[Tree], window: int | None, capacity: int, multiple: int
) -> None:
    token_rows = place_in_rows(trees, pack([len(tree) for tree in trees], capacity), multiple)
    partial, full = block_table(token_rows, window)
    some, all_ = blocks_seen(token_rows, window)
    assert not (some & ~partial & ~full).any()
    assert not (full & ~all_).any()
    assert not (partial & full).any()


def test_blocks_of_other_texts_and_behind_the_window_are_not_visited() -> None:
    token_rows = place_in_rows([Tree([5] * 1020, [[6, 7], [8, 9]]) for _ in range(2)], [[0, 1]], BLOCK_TOKENS)
    partial, full = block_table(token_rows)
    visited, (some, _) = (partial | full)[0], blocks_seen(token_rows, None)
    np.testing.assert_array_equal(visited, some[0])
    assert full.sum() == 2 * sum(range(8))  # blocks of trunks, below the diagonal
    partial, full = block_table(token_rows, 200)
    assert (partial | full).sum() <= blocks_seen(token_rows, 200)[0].sum() + 2


@pytest.mark.parametrize("window", [None, 150])
def test_the_mask_is_what_is_visible(window: int | None) -> None:
    trees = [Tree([5] * 300, [[6] * 9, [7] * 11]), Tree([5] * 40, [[6] * 9]), Tree([], [[6] * 5, [7] * 6])]
    token_rows = place_in_rows(trees, [[0, 1], [2]])
    mask = block_mask(token_rows, window, torch.device("cpu"))
    assert mask.seq_lengths == (token_rows.ids.shape[1],) * 2
    index = torch.arange(token_rows.ids.shape[1])
    rows = torch.arange(2)[:, None, None]
    found = mask.mask_mod(rows, torch.tensor(0), index[None, :, None], index[None, None, :])
    np.testing.assert_array_equal(found.numpy(), visible(token_rows, window))


@pytest.mark.parametrize(("budget", "multiple"), [(1, 128), (1100, 256), (10240, 2048), (16384, 2048), (65536, 8192)])
def test_rows_as_long_as_a_forward_have_eight_widths_at_most(budget: int, multiple: int) -> None:
    assert row_multiple(budget) == multiple
    rows = Batching("packed", budget, multiple=multiple).forwards([40] * 5000)
    assert all(row_width(40 * len(row), multiple) <= max(budget, 128) for (row,) in rows)
