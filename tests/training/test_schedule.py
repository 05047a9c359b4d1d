"""Several sets in one run: one set a batch, shares by weight, the same from any step on."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llara_cli.training.schedule import Schedule, Share

SETS = st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.5, 1.0, 2.0, 1.3])), min_size=2, max_size=3)


def schedule(sets: list[tuple[int, float]], batch: int, epochs: int = 1) -> Schedule:
    """Of sets of so many items and such weights."""
    shares, first = [], 0
    for items, weight in sets:
        shares.append(Share(first, items, weight))
        first += items
    return Schedule.of(shares, batch_size=batch, epochs=epochs, seed=5)


@given(sets=SETS, batch=st.integers(1, 9), epochs=st.integers(1, 3), start=st.integers(0, 20))
def test_batches_are_of_one_set_and_shares_by_weight(
    sets: list[tuple[int, float]], batch: int, epochs: int, start: int
) -> None:
    ours = schedule(sets, batch, epochs)
    steps = list(ours.batches())
    bounds = [(share.first, share.first + share.items) for share in ours.shares]
    assert all(any(low <= min(ns) and max(ns) < high for low, high in bounds) for _, ns in steps)
    taken = Counter(number for _, numbers in steps for number in numbers)
    for share in ours.shares:
        counts = [taken[number] for number in range(share.first, share.first + share.items)]
        assert sum(counts) == epochs * share.quota
        assert max(counts) - min(counts) <= 1  # every row is taken before any is taken again
    assert list(ours.batches(start)) == steps[start:]
    assert ours.epochs == epochs


def test_sets_are_mixed() -> None:
    ours = schedule([(40, 1.0), (40, 1.0)], 4)
    first = [numbers[0] < 40 for _, numbers in ours.batches()]
    assert sorted(first) != first
    assert sorted(first, reverse=True) != first


def test_each_turn_draws_other_negatives() -> None:
    """A set of weight 2 is gone through twice in an epoch: as turns 0 and 1."""
    turns = {turn for turn, numbers in schedule([(8, 2.0), (8, 1.0)], 4).batches() if numbers[0] < 8}
    assert turns == {0, 1}
