"""Statistical significance: paired tests, Holm's correction, bootstrap intervals.

A value is a weighted sum of means: of one data set (one stratum, weight 1), of CQADupStack (its forums, equal weights)
or of a whole benchmark (its data sets). Each test takes strata, so it works for all three; with one stratum the tests
equal scipy's ``ttest_rel`` and ``permutation_test``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llara_cli.core.errors import UserError

Floats = NDArray[np.float64]
RESAMPLES = 9_999
_BATCH_CELLS = 1 << 22
_EQUAL = 1e-9


@dataclass(frozen=True)
class Stratum:
    """(queries,) values of a data set, and the weight of their mean."""

    values: Floats
    weight: float = 1.0


def figure(strata: Sequence[Stratum]) -> float:
    """The weighted sum of means."""
    return float(sum(stratum.weight * stratum.values.mean() for stratum in strata))


def t_test(differences: Sequence[Stratum]) -> float | None:
    """Two-sided p-value of a paired t-test; None if a stratum has a single query, and so no variance.

    Over several strata: the variance of the weighted sum, with Welch and Satterthwaite's degrees of freedom.
    """
    if all((np.abs(stratum.values) <= _EQUAL).all() for stratum in differences):
        return 1.0
    if any(len(stratum.values) < 2 for stratum in differences):
        return None
    parts = np.array([s.weight**2 * s.values.var(ddof=1) / len(s.values) for s in differences])
    if parts.sum() == 0:
        return 0.0
    freedom = parts.sum() ** 2 / sum(part**2 / (len(s.values) - 1) for part, s in zip(parts, differences, strict=True))
    return float(2 * stats.t.sf(abs(figure(differences)) / np.sqrt(parts.sum()), freedom))


def randomisation(differences: Sequence[Stratum]) -> float | None:
    """Two-sided p-value of the paired randomization test: the two systems' values of a query are swapped at random.

    None for a single query.
    """
    if all((np.abs(stratum.values) <= _EQUAL).all() for stratum in differences):
        return 1.0
    shares = np.concatenate([s.weight * s.values / len(s.values) for s in differences])
    if len(shares) < 2:
        return None
    found = stats.permutation_test(
        (shares, np.zeros_like(shares)),
        lambda mine, theirs, axis: (mine - theirs).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_CELLS // len(shares)),
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


TESTS: Mapping[str, Callable[[Sequence[Stratum]], float | None]] = {"t-test": t_test, "randomisation": randomisation}


def named_test(name: str) -> Callable[[Sequence[Stratum]], float | None]:
    """The test of that name. Raises ``UserError`` for an unknown one."""
    if name not in TESTS:
        raise UserError(f"unknown `test={name!r}`: known are {', '.join(TESTS)}")
    return TESTS[name]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979); None stays None and is not counted."""
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        found[place] = largest
    return found


def interval(strata: Sequence[Stratum], level: float = 0.95, resamples: int = 2_000) -> tuple[float, float]:
    """Percentile bootstrap interval: queries are resampled, with replacement, within each stratum."""
    random = np.random.default_rng(0)
    sums = np.zeros(resamples)
    for stratum in strata:
        count = len(stratum.values)
        step = max(1, _BATCH_CELLS // count)
        for start in range(0, resamples, step):
            drawn = random.integers(0, count, (min(step, resamples - start), count))
            sums[start : start + step] += stratum.weight * stratum.values[drawn].mean(axis=1)
    low, high = np.quantile(sums, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wins(differences: Sequence[Stratum]) -> dict[str, Any]:
    """Numbers of queries on which the second system is better, equal, worse."""
    every = np.concatenate([stratum.values for stratum in differences])
    better, worse = int((every > _EQUAL).sum()), int((every < -_EQUAL).sum())
    return {"wins": better, "ties": len(every) - better - worse, "losses": worse}
