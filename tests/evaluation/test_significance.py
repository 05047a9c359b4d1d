"""Tests and intervals against scipy directly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llara_cli.core.errors import UserError
from llara_cli.evaluation.significance import (
    RESAMPLES,
    Stratum,
    figure,
    holm,
    interval,
    named_test,
    randomisation,
    t_test,
    wins,
)


def pair(seed: int, count: int = 40, shift: float = 0.08) -> tuple[np.ndarray, np.ndarray]:
    """Two systems' values of the same queries."""
    random = np.random.default_rng(seed)
    first = random.random(count)
    return first, np.clip(first + random.normal(shift, 0.2, count), 0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_one_data_set_is_scipys_paired_t_test(seed: int) -> None:
    first, second = pair(seed)
    found = t_test([Stratum(second - first)])
    assert found == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_one_data_set_is_scipys_permutation_test(seed: int) -> None:
    first, second = pair(seed, 12)
    exact = stats.permutation_test(
        (second, first), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    found = randomisation([Stratum(second - first)])
    assert found is not None
    # scipy itself is exact where there are no more than so many swaps
    assert found == pytest.approx(exact, abs=1e-9 if RESAMPLES >= 2**12 else 0.02)


def test_several_data_sets_are_weighed_not_pooled() -> None:
    """A large set does not outvote a small one: the figure is the mean of means."""
    large, small = np.full(1000, 0.1), np.full(10, -0.3)
    assert figure([Stratum(large, 0.5), Stratum(small, 0.5)]) == pytest.approx(-0.1)


def test_welchs_degrees_of_freedom_over_two_strata() -> None:
    """The weighted difference of two independent means is what Welch's test is about."""
    first, second = np.random.default_rng(0).normal(0.3, 1, 20), np.random.default_rng(1).normal(0, 2, 35)
    found = t_test([Stratum(first, 1.0), Stratum(second, -1.0)])
    assert found == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue, rel=1e-9)


def test_the_randomisation_test_holds_its_level_over_strata() -> None:
    """Without a difference, p is below 0.1 in about a tenth of the cases."""
    random = np.random.default_rng(5)
    small = 0
    for _ in range(100):
        strata = [Stratum(random.normal(0, 1, 15), 0.5), Stratum(random.normal(0, 3, 40), 0.5)]
        p = randomisation(strata)
        assert p is not None
        small += p < 0.1
    assert 2 <= small <= 20


def test_no_difference_at_all() -> None:
    same = [Stratum(np.zeros(7))]
    assert t_test(same) == randomisation(same) == 1.0


def test_too_few_queries_for_a_spread() -> None:
    assert t_test([Stratum(np.array([0.4]))]) is None
    assert t_test([Stratum(np.full(5, 0.25))]) == 0.0


def test_holm() -> None:
    """By hand: 0.01 x 4, 0.02 x 3, then never less than before."""
    assert holm([0.04, 0.01, 0.02, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(3))
def test_intervals_are_scipys(seed: int) -> None:
    values, _ = pair(seed, 200)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(seed)
    ).confidence_interval
    assert interval([Stratum(values)]) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_intervals_of_several_sets_are_narrower_than_of_each() -> None:
    strata = [Stratum(pair(seed, 100)[0], 0.25) for seed in range(4)]
    low, high = interval(strata)
    single = interval([Stratum(strata[0].values)])
    assert low < figure(strata) < high
    assert high - low < 0.7 * (single[1] - single[0])


def test_wins() -> None:
    assert wins([Stratum(np.array([0.1, 0, -0.2])), Stratum(np.array([0.3, 1e-12]))]) == {
        "wins": 2, "ties": 2, "losses": 1,
    }  # fmt: skip


def test_an_unknown_test() -> None:
    with pytest.raises(UserError, match="known are t-test, randomisation"):
        named_test("wilcoxon")
