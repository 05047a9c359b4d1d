"""Masks and positions are what a sequence of its own would have."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llara_cli.model.batching import pack
from llara_cli.model.sequences import Tree, place_in_rows, row_width, visible


@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
    capacity=st.integers(1, 30),
)
def test_a_token_sees_its_trunk_and_its_own_branch_only(shapes: list[tuple[int, int, int]], capacity: int) -> None:
    trees = [Tree([0] * trunk, [[0] * first, [0] * second]) for trunk, first, second in shapes]
    token_rows = place_in_rows(trees, pack([len(tree) for tree in trees], capacity))
    seen = visible(token_rows)
    for row in range(len(token_rows.ids)):
        for query in np.flatnonzero(token_rows.real[row]):
            keys = np.flatnonzero(seen[row, query])
            trunk = (token_rows.tree[row] == token_rows.tree[row, query]) & (token_rows.branch[row] == 0)
            tree, branch = token_rows.tree[row], token_rows.branch[row]
            own = (tree == tree[query]) & (branch == branch[query])
            assert set(keys) == set(np.flatnonzero((trunk | own) & (np.arange(len(own)) <= query)))
            # positions of what a token sees are 0, 1, 2 ... up to its own: as in a sequence of its own
            assert token_rows.positions[row, keys].tolist() == list(range(len(keys)))


def test_a_window_counts_positions_not_places() -> None:
    tree = Tree([1, 2, 3, 4], [[5, 6], [7, 8]])
    seen = visible(place_in_rows([tree]), window=3)[0]
    assert np.flatnonzero(seen[7]).tolist() == [3, 6, 7]  # second branch: positions 3, 4, 5


@given(tokens=st.integers(1, 20_000), multiple=st.sampled_from([1, 8, 100, 128, 2048]))
def test_rows_are_rounded_up_and_short_ones_to_less(tokens: int, multiple: int) -> None:
    width = row_width(tokens, multiple)
    assert tokens <= width < tokens + multiple
    assert width < 2 * max(tokens, 128)


def test_rows_that_are_rounded_up_have_few_widths() -> None:
    assert {row_width(tokens, 2048) for tokens in range(1, 8193)} == {128, 256, 512, 1024, 2048, 4096, 6144, 8192}
