"""Packing, batching and dealing: nothing lost, nothing over the bound, little padding, always the same."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llara_cli.model.batching import (
    CPU_FORWARD_TOKENS,
    LAYOUTS,
    Batching,
    LayoutName,
    assign_to_ranks,
    computed_tokens,
    cut,
    forward_tokens,
    micro_batches,
    pack,
    pack_evenly,
)

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def passages(count: int, seed: int) -> list[int]:
    """Tokens of passages of a collection with a prompt of 14 tokens each: log-normal around 150."""
    return (np.clip(np.random.default_rng(seed).lognormal(5.0, 0.6, count), 8, 470).astype(int) + 14).tolist()


@given(lengths=lengths, capacity=st.integers(1, 100))
def test_pack_places_every_sequence_once_within_capacity(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[number] for number in row) <= capacity or len(row) == 1
    assert rows == pack(lengths, capacity)


@given(
    lengths=lengths, capacity=st.integers(1, 200), multiple=st.sampled_from([1, 8, 128]), processes=st.integers(1, 4)
)
def test_even_rows_have_every_sequence_once_within_capacity(
    lengths: list[int], capacity: int, multiple: int, processes: int
) -> None:
    rows = pack_evenly(lengths, capacity, multiple, processes)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    held = [sum(lengths[number] for number in row) for row in rows]
    assert all(tokens <= capacity or len(row) == 1 for tokens, row in zip(held, rows, strict=True))
    assert held == sorted(held, reverse=True)
    if processes == 1 and max(lengths) <= capacity:
        assert len(rows) <= len(pack(lengths, capacity))
    assert rows == pack_evenly(lengths, capacity, multiple, processes)


@pytest.mark.parametrize("processes", [1, 3, 8])
@pytest.mark.parametrize("multiple", [128, 2048])
@pytest.mark.parametrize("count", [100, 256, 544])
def test_even_rows_have_two_widths_and_little_padding(count: int, multiple: int, processes: int) -> None:
    lengths = passages(count, seed=1)
    rows = pack_evenly(lengths, 16384, multiple, processes)
    held = [sum(lengths[number] for number in row) for row in rows]
    widths = [length + -length % multiple for length in held]
    assert len(set(widths)) <= 2
    assert sum(widths) < sum(lengths) + 2 * multiple
    assert max(widths) <= sum(lengths) / max(processes, -(-sum(lengths) // 16384)) + 2 * multiple


@given(
    lengths=lengths,
    budget=st.integers(1, 400),
    overhead=st.integers(0, 100),
)
def test_micro_batches_hold_the_budget_and_lose_no_row(lengths: list[int], budget: int, overhead: int) -> None:
    batches = micro_batches(lengths, budget, overhead)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * max(lengths[row] for row in batch) <= budget or len(batch) == 1
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9),
    budget=st.integers(1, 400),
    overhead=st.integers(0, 100),
)
def test_no_other_cut_of_the_sorted_rows_costs_less(lengths: list[int], budget: int, overhead: int) -> None:
    ordered = sorted(lengths, reverse=True)

    def cost(cuts: tuple[int, ...]) -> float:
        edges = [0, *cuts, len(ordered)]
        parts = [ordered[a:b] for a, b in pairwise(edges)]
        if any(len(part) * part[0] > budget and len(part) > 1 for part in parts):
            return float("inf")
        return sum(len(part) * part[0] + overhead for part in parts)

    every = [c for n in range(len(ordered)) for c in combinations(range(1, len(ordered)), n)]
    found = micro_batches(lengths, budget, overhead)
    mine = sum(len(batch) * lengths[batch[0]] + overhead for batch in found)
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


@pytest.mark.parametrize(
    ("device", "parameters", "tokens"),
    [
        ("cpu", 135_000_000, CPU_FORWARD_TOKENS),
        ("cpu", 7_000_000_000, CPU_FORWARD_TOKENS),
        ("cuda", 135_000_000, 4096),
        ("cuda", 1_000_000_000, 3584),
        ("cuda", 7_000_000_000, 512),
        ("cuda", 10**14, 1),
    ],
)
def test_a_forward_costs_what_device_and_model_make_of_it(device: str, parameters: int, tokens: int) -> None:
    assert forward_tokens(device, parameters) == tokens


@pytest.mark.parametrize(("device", "parameters", "forwards", "padding"), [
    ("cpu", 135_000_000, 212, 0.002),
    ("cuda", 135_000_000, 15, 0.06),
    ("cuda", 7_000_000_000, 39, 0.021),
])  # fmt: skip
def test_a_gpu_encodes_a_shard_in_few_forwards(device: str, parameters: int, forwards: int, padding: float) -> None:
    lengths = passages(4096, seed=0)
    found = Batching("bucketed", 65536, forward_tokens=forward_tokens(device, parameters)).forwards(lengths)
    assert len(found) == forwards
    assert 1 - sum(lengths) / computed_tokens(lengths, found) < padding


def test_a_shard_in_whole_rows_has_next_to_no_padding() -> None:
    lengths = passages(4096, seed=0)
    packed = Batching("packed", 65536, multiple=128).forwards(lengths)
    widths = [-(-sum(lengths[number] for number in row) // 128) for (row,) in packed]
    assert len(packed) == -(-sum(lengths) // 65536) == 12
    assert len(set(widths)) <= 2
    assert 128 * sum(widths) < 1.0005 * sum(lengths)


def test_a_gpu_trains_on_a_batch_of_queries_and_passages_in_few_forwards() -> None:
    queries = np.clip(np.random.default_rng(4).poisson(10, 32), 3, 40) + 14
    lengths = [*queries.tolist(), *passages(32 * 16, seed=3)]
    found = {
        device: Batching("bucketed", 16384, forward_tokens=forward_tokens(device, 135_000_000)).forwards(lengths)
        for device in ("cpu", "cuda")
    }
    assert [len(forwards) for forwards in found.values()] == [74, 8]
    assert 1 - sum(lengths) / computed_tokens(lengths, found["cuda"]) < 0.15
    assert len(Batching("packed", 16384).forwards(lengths)) == -(-sum(lengths) // 16384) == 7


@given(lengths=lengths, most=st.integers(1, 5), layout=st.sampled_from(LAYOUTS), row=st.sampled_from([None, 70]))
def test_cut_forwards_keep_their_order(lengths: list[int], most: int, layout: LayoutName, row: int | None) -> None:
    for rows in Batching(layout, 200, row).forwards(lengths):
        parts = cut(rows, most)
        assert [n for part in parts for piece in part for n in piece] == [n for row in rows for n in row]
        assert all(0 < sum(map(len, part)) <= most for part in parts)
        if layout == "bucketed":
            assert parts == [rows[at : at + most] for at in range(0, len(rows), most)]


@given(costs=st.lists(st.integers(1, 1000), max_size=30), processes=st.integers(1, 5))
def test_every_forward_is_dealt_once_and_all_hands_are_as_long(costs: list[int], processes: int) -> None:
    hands = assign_to_ranks(costs, processes)
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
    row=st.sampled_from([None, 100]),
)
def test_sequences_on_either_side_of_a_switch_share_no_forward(
    texts: list[tuple[int, int]], switch: int, budget: int, layout: LayoutName, row: int | None
) -> None:
    """Lengths, and what branches that share positions save of them."""
    lengths, spans = [length for length, _ in texts], [max(1, length - saved) for length, saved in texts]
    forwards = Batching(layout, budget, row, switch=switch).forwards(lengths, spans=spans)
    held = [[number for row in rows for number in row] for rows in forwards]
    assert sorted(number for numbers in held for number in numbers) == list(range(len(texts)))
    assert all(len({spans[number] > switch for number in numbers}) == 1 for numbers in held)
