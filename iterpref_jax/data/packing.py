"""Plan, then read: which records go into which row of which step, as a pure function of (index, seed, step).

Nothing here reads a record, so a data state is one integer (the step), resume is exact and O(1), and the plan does not
depend on hosts or workers.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from iterpref_jax.data.layout import Costs, RowSettings
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import mix64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caps:
    """The resolved shape of a row: T tokens, G targets, P pairs."""

    tokens: int
    targets: int
    pairs: int


def resolve_caps(costs: Costs, rows: RowSettings, split: str = "") -> Caps:
    """Returns the caps, filling in those set to 0 from the mean pair so that tokens are the cap that binds.

    Raises:
        UserError: pairs that do not fit an empty row, with their number and the size that would hold them.
    """
    mean_tokens = max(1.0, float(costs.tokens.mean()))
    per_token = float(costs.targets.sum()) / max(1, int(costs.tokens.sum()))
    # A quarter above the mean density, rounded to whole lanes: rows rarely fill up on targets first.
    targets = max(math.ceil(1.25 * per_token * rows.tokens / 64) * 64, int(costs.targets.max()))
    caps = Caps(
        tokens=rows.tokens,
        targets=rows.targets or targets,
        pairs=rows.pairs or math.ceil(2 * rows.tokens / mean_tokens),
    )
    for name, cost, cap in (("tokens", costs.tokens, caps.tokens), ("targets", costs.targets, caps.targets)):
        too_big = int((cost > cap).sum())
        if too_big:
            where = f"{too_big} of {len(cost)} {split} pairs" if split else f"{too_big} of {len(cost)} pairs"
            raise UserError(
                f"{where} need more than rows.{name} = {cap} ({int(cost.max())} at most); raise rows.{name} to "
                f"{int(cost.max())}, or build the records with a lower build.max_tokens"
            )
    return caps


def best_fit(records: np.ndarray, costs: Costs, caps: Caps) -> list[list[int]]:
    """Packs records into rows: largest first, each into the fullest row that still holds it (ties: the first row).

    >>> costs = Costs(np.array([5, 9, 4, 1]), np.array([1, 1, 1, 1]), np.array([1, 1, 1, 1]))
    >>> best_fit(np.arange(4), costs, Caps(tokens=10, targets=9, pairs=9))
    [[1, 3], [0, 2]]
    """
    rows: list[list[int]] = []
    left = np.empty((len(records), 3), np.int64)
    for record in records[np.argsort(-costs.tokens[records], kind="stable")]:
        need = np.array([costs.tokens[record], costs.targets[record], 1])
        fits = np.flatnonzero((left[: len(rows)] >= need).all(axis=1))
        if fits.size:
            row = fits[np.argmin(left[fits, 0])]
        else:
            row = len(rows)
            left[row] = (caps.tokens, caps.targets, caps.pairs)
            rows.append([])
        rows[row].append(int(record))
        left[row] -= need
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Batches of exactly `pairs_per_step` pairs, packed into rows of `caps`.

    With a `seed` the pairs are shuffled anew every epoch and the stream of epochs has no seam (a step may hold the end
    of one and the start of the next). Without one (None) they come once, in order, and the last step may be smaller.
    """

    costs: Costs
    caps: Caps
    pairs_per_step: int
    rows_per_microbatch: int
    steps: int
    seed: int | None

    @property
    def pairs(self) -> int:
        return len(self.costs.tokens)

    def records(self, step: int) -> np.ndarray:
        """Returns the record numbers of one step, in stream order."""
        stream = np.arange(step * self.pairs_per_step, (step + 1) * self.pairs_per_step)
        if self.seed is None:
            return stream[stream < self.pairs]
        epochs, places = np.divmod(stream, self.pairs)
        return np.concatenate([_order(self.seed, int(e), self.pairs)[places[epochs == e]] for e in np.unique(epochs)])

    def rows(self, step: int) -> list[list[int]]:
        """Returns the records of every row of one step."""
        return best_fit(self.records(step), self.costs, self.caps)

    @functools.cached_property
    def microbatches(self) -> int:
        """The most microbatches that any step needs: the leading dim of every batch."""
        most = max(len(self.rows(step)) for step in range(self.steps))
        return math.ceil(most / self.rows_per_microbatch)


def training_plan(costs: Costs, rows: RowSettings, *, global_batch: int, epochs: float, steps: int, seed: int) -> Plan:
    """Returns the plan of a training run of `steps` steps, or of `epochs` passes where `steps` is 0.

    Raises:
        UserError: more pairs a step than the dataset holds, or pairs that fit no row.
    """
    pairs = len(costs.tokens)
    if global_batch > pairs:
        raise UserError(f"train.global_batch is {global_batch} pairs, but the train split holds only {pairs}")
    return Plan(
        costs=costs,
        caps=resolve_caps(costs, rows),
        pairs_per_step=global_batch,
        rows_per_microbatch=rows.rows_per_microbatch,
        steps=steps or max(1, int(epochs * pairs / global_batch)),
        seed=seed,
    )


def pass_plan(costs: Costs, rows: RowSettings, *, pairs_per_step: int) -> Plan:
    """Returns the plan of one pass over all pairs in order (held-out evaluation, reference log-probs)."""
    return Plan(
        costs=costs,
        caps=resolve_caps(costs, rows),
        pairs_per_step=pairs_per_step,
        rows_per_microbatch=rows.rows_per_microbatch,
        steps=math.ceil(len(costs.tokens) / pairs_per_step),
        seed=None,
    )


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, pairs: int) -> np.ndarray:
    """A shuffle made of hashes, so that no NumPy version can change the order of a resumed run."""
    keys = mix64(np.arange(pairs, dtype=np.uint64) + mix64(np.uint64(seed) + mix64(np.uint64(epoch))))
    return np.argsort(keys, kind="stable")
