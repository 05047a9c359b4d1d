"""How many steps a run takes, and which items each takes, as functions of sizes, weights, seed and step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from llara_cli.training.config import MAX_STEPS, TrainConfig


@dataclass(frozen=True)
class Share:
    """One data set of a run: its items are numbered from ``first`` on; an epoch takes ``weight`` times as many."""

    first: int
    items: int
    weight: float = 1.0

    @property
    def quota(self) -> int:
        """Items per epoch."""
        return max(1, round(self.weight * self.items))


@dataclass(frozen=True)
class Schedule:
    """Batches of one data set each, in a seeded order; all items of a set are taken before any is taken again."""

    shares: Sequence[Share]
    batch_size: int
    steps: int
    seed: int

    @classmethod
    def of(
        cls,
        shares: Sequence[Share],
        *,
        batch_size: int,
        seed: int,
        max_steps: int | None = None,
        epochs: float | None = None,
    ) -> Schedule:
        """A run of ``max_steps``, or of ``epochs``, or of one epoch but at most 10,000 steps."""
        per_epoch = sum(math.ceil(share.quota / batch_size) for share in shares)
        if max_steps is not None:
            steps = max_steps
        elif epochs is not None:
            steps = max(1, round(epochs * per_epoch))
        else:
            steps = min(per_epoch, MAX_STEPS)
        return cls(tuple(shares), batch_size, steps, seed)

    @property
    def items(self) -> int:
        """Items of one epoch."""
        return sum(share.quota for share in self.shares)

    @property
    def epochs(self) -> float:
        """Passes over the items."""
        return self.steps / self._firsts[-1]

    @cached_property
    def _firsts(self) -> list[int]:
        """The first batch of each set in an epoch before shuffling, and last the number of batches."""
        return [0, *accumulate(math.ceil(share.quota / self.batch_size) for share in self.shares)]

    def _slot(self, batch: int) -> tuple[int, int]:
        """The set of a batch, and its place among the set's items of the epoch."""
        number = bisect_right(self._firsts, batch) - 1
        return number, (batch - self._firsts[number]) * self.batch_size

    def epoch(self) -> Iterator[tuple[int, Sequence[int]]]:
        """The batches of the first epoch, even if the run is shorter."""
        return replace(self, steps=self._firsts[-1]).batches()

    def batches(self, start: int = 0) -> Iterator[tuple[int, Sequence[int]]]:
        """From step ``start`` on: the number of earlier passes over the batch's set, and its item numbers."""
        per_epoch = self._firsts[-1]
        order: Sequence[int] | NDArray[np.int64] = range(per_epoch)
        orders: dict[int, tuple[int, NDArray[np.int32]]] = {}
        for step in range(start, self.steps):
            epoch, within = divmod(step, per_epoch)
            if len(self.shares) > 1 and (step == start or within == 0):
                order = np.random.default_rng([self.seed, epoch, len(self.shares)]).permutation(per_epoch)
            yield self._batch(epoch, self._slot(int(order[within])), orders)

    def _batch(
        self, epoch: int, slot: tuple[int, int], orders: dict[int, tuple[int, NDArray[np.int32]]]
    ) -> tuple[int, Sequence[int]]:
        """``orders``: for each set, the latest pass and its order."""
        number, start = slot
        share = self.shares[number]
        stop = min(start + self.batch_size, share.quota)
        taken: list[int] = []
        for place in range(epoch * share.quota + start, epoch * share.quota + stop):
            turn, at = divmod(place, share.items)
            if orders.get(number, (None,))[0] != turn:
                # a single set, the usual case, is shuffled by seed and epoch alone
                seed = [self.seed, turn] if len(self.shares) == 1 else [self.seed, turn, number]
                orders[number] = turn, shuffled(share.items, seed)
            taken.append(share.first + int(orders[number][1][at]))
        return (epoch * share.quota + start) // share.items, taken


def shuffled(items: int, seed: Sequence[int]) -> NDArray[np.int32]:
    """Numbers 0 to ``items`` (exclusive) in a seeded order, as int32: a corpus may have a hundred million."""
    order = np.arange(items, dtype=np.int32)
    np.random.default_rng(seed).shuffle(order)
    return order


def schedule_of(shares: Sequence[Share], config: TrainConfig) -> Schedule:
    """The schedule for settings whose batch size is set."""
    assert config.batch_size is not None
    return Schedule.of(
        shares, batch_size=config.batch_size, seed=config.seed, max_steps=config.max_steps, epochs=config.epochs
    )
