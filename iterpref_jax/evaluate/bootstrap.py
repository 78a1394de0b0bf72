"""Bootstrap intervals of ratios of sums over pairs, resampled by task: pairs of one task are not independent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Both ends of a 95% interval, in percent.
ENDS = (2.5, 97.5)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


class TaskBootstrap:
    """The same resamples of the tasks for everything that is estimated, so that differences are paired."""

    def __init__(self, tasks: Sequence[str], *, samples: int, seed: int):
        """`tasks` holds the task of each pair."""
        names, self._task = np.unique(np.asarray(tasks), return_inverse=True)
        self.tasks, self.samples, self.seed = len(names), samples, seed
        draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), samples)
        self._draws = draws.astype(np.float64)

    def ratios(self, numerators: np.ndarray, denominators: np.ndarray) -> list[Estimate | None]:
        """Returns sum(numerator) / sum(denominator) for each column of [pairs, columns]; None where there is nothing.

        Resamples without any of a column's pairs say nothing of it and are left out.
        """
        sums, counts = self._by_task(numerators), self._by_task(denominators)
        drawn_sums, drawn_counts = self._draws @ sums, self._draws @ counts
        found: list[Estimate | None] = []
        for column in range(sums.shape[1]):
            whole, used = counts[:, column].sum(), drawn_counts[:, column] > 0
            if not whole:
                found.append(None)
                continue
            low, high = np.percentile(drawn_sums[used, column] / drawn_counts[used, column], ENDS)
            found.append(Estimate(float(sums[:, column].sum() / whole), float(low), float(high)))
        return found

    def _by_task(self, values: np.ndarray) -> np.ndarray:
        sums = np.zeros((self.tasks, values.shape[1]))
        np.add.at(sums, self._task, values)
        return sums
