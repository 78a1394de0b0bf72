"""pass@k with bootstrap intervals, and what tells two runs apart: paired bootstrap and McNemar's test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Run B less run A: the difference of their scores, the tasks that flipped, and McNemar's exact p."""

    interval: Interval
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    p: float


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Returns 1 - C(n-c, k) / C(n, k): the unbiased chance that one of k samples passes (Chen et al. 2021).

    >>> round(pass_at_k(samples=10, passed=3, k=5), 4)
    0.9167
    """
    if k > samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {samples}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def score(values: Sequence[float], *, draws: int, seed: int) -> Interval:
    """Returns the mean over tasks of their pass@k, with a percentile bootstrap over tasks."""
    values_T = np.asarray(values, dtype=np.float64)
    return _interval(float(values_T.mean()), _means(values_T, draws, seed))


def difference(
    first: dict[str, float], second: dict[str, float], *, draws: int, seed: int, solved: float = 0.5
) -> Difference:
    """Compares two runs over the tasks that both have (name -> pass@1).

    A task counts as solved from `solved` on; with one sample a task that is whether it passed.
    """
    names = [name for name in first if name in second]
    a_T, b_T = (np.array([run[name] for name in names]) for run in (first, second))
    gained = tuple(name for name in names if first[name] < solved <= second[name])
    lost = tuple(name for name in names if second[name] < solved <= first[name])
    return Difference(
        interval=_interval(float((b_T - a_T).mean()), _means(b_T - a_T, draws, seed)),
        gained=gained,
        lost=lost,
        p=mcnemar(len(gained), len(lost)),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Returns the exact two-sided p of so many flips each way, were both equally likely.

    >>> mcnemar(8, 1)
    0.0390625
    """
    flips = gained + lost
    tail = sum(math.comb(flips, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**flips)


def _means(values_T: np.ndarray, draws: int, seed: int) -> np.ndarray:
    random, count = np.random.default_rng(seed), len(values_T)
    # One draw at a time: all at once would be draws x tasks numbers.
    return np.array([values_T[random.integers(0, count, count)].mean() for _ in range(draws)])


def _interval(value: float, means: np.ndarray) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(value=value, low=float(low), high=float(high))
