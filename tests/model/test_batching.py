"""Packing, batching and dealing: nothing lost, nothing over the bound, little padding, always the same."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llara_cli.model.batching import (
    FORWARD_TOKENS,
    LAYOUTS,
    Batching,
    LayoutName,
    computed_tokens,
    deal,
    micro_batches,
    pack,
)

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths=lengths, capacity=st.integers(1, 100))
def test_pack_places_every_sequence_once_within_capacity(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[number] for number in row) <= capacity or len(row) == 1
    assert rows == pack(lengths, capacity)


@given(lengths=lengths, budget=st.integers(1, 400))
def test_micro_batches_hold_the_budget_and_lose_no_row(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * max(lengths[row] for row in batch) <= budget or len(batch) == 1
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), budget=st.integers(1, 400))
def test_no_other_cut_of_the_sorted_rows_costs_less(lengths: list[int], budget: int) -> None:
    ordered = sorted(lengths, reverse=True)

    def cost(cuts: tuple[int, ...]) -> float:
        edges = [0, *cuts, len(ordered)]
        parts = [ordered[a:b] for a, b in pairwise(edges)]
        if any(len(part) * part[0] > budget and len(part) > 1 for part in parts):
            return float("inf")
        return sum(len(part) * part[0] + FORWARD_TOKENS for part in parts)

    every = [c for n in range(len(ordered)) for c in combinations(range(1, len(ordered)), n)]
    found = micro_batches(lengths, budget)
    mine = sum(len(batch) * lengths[batch[0]] + FORWARD_TOKENS for batch in found)
    assert mine == min(cost(cuts) for cuts in every)


@pytest.mark.parametrize(("layout", "row_tokens"), [("packed", 256), ("packed", 16384), ("bucketed", 256)])
@pytest.mark.parametrize("batch", [64, 256])
def test_less_than_three_percent_of_mixed_lengths_is_padding(layout: Any, row_tokens: int, batch: int) -> None:
    """Lengths like Wikipedia's paragraphs: log-normal around 90 tokens, at most 512."""
    draw = np.random.default_rng(0)
    for _ in range(5):
        lengths = np.clip(draw.lognormal(4.5, 0.75, batch), 8, 498).astype(int) + 14
        forwards = Batching(layout, max(1024, row_tokens), row_tokens).forwards(lengths.tolist())
        assert 1 - sum(lengths) / computed_tokens(lengths.tolist(), forwards) < 0.03


@given(costs=st.lists(st.integers(1, 1000), max_size=30), processes=st.integers(1, 5))
def test_every_forward_is_dealt_once_and_all_hands_are_as_long(costs: list[int], processes: int) -> None:
    hands = deal(costs, processes)
    assert len(hands) == processes
    assert len({len(hand) for hand in hands}) == 1
    assert sorted(number for hand in hands for number in hand if number >= 0) == list(range(len(costs)))


@given(lengths=lengths, processes=st.integers(1, 4))
def test_processes_share_the_tokens(lengths: list[int], processes: int) -> None:
    forwards = Batching("packed", 4096, 256).forwards(lengths, processes)
    assert sorted(n for rows in forwards for row in rows for n in row) == list(range(len(lengths)))
    assert len(forwards) >= min(processes, len(lengths)) or max(lengths) > sum(lengths) / processes


@given(
    texts=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20)), min_size=1, max_size=30),
    switch=st.integers(1, 70),
    budget=st.integers(1, 400),
    layout=st.sampled_from(LAYOUTS),
)
def test_sequences_on_either_side_of_a_switch_share_no_forward(
    texts: list[tuple[int, int]], switch: int, budget: int, layout: LayoutName
) -> None:
    """Lengths, and what branches that share positions save of them."""
    lengths, spans = [length for length, _ in texts], [max(1, length - saved) for length, saved in texts]
    forwards = Batching(layout, budget, 100, switch=switch).forwards(lengths, spans=spans)
    held = [[number for row in rows for number in row] for rows in forwards]
    assert sorted(number for numbers in held for number in numbers) == list(range(len(texts)))
    assert all(len({spans[number] > switch for number in numbers}) == 1 for numbers in held)
