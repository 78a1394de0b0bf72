"""Plan, then read: which records go into which row of which step, as a pure function of (index, seed, step).

Nothing here reads a record, so a data state is one integer (the step), resume is exact and O(1), and the plan does not
depend on hosts or workers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import numpy as np

from iterpref_jax.data.layout import Costs, RowSettings
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import mix64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caps:
    """The resolved shape of a row: T tokens, G targets, E terms, P pairs."""

    tokens: int
    targets: int
    terms: int
    pairs: int


def resolve_caps(costs: Costs, rows: RowSettings, split: str = "") -> Caps:
    """Returns the caps of rows that hold every pair; see `_caps`.

    Raises:
        UserError: pairs that do not fit an empty row, with their number and the size that would hold them.
    """
    caps = _caps(costs, rows)
    for name, cost, cap in (("tokens", costs.tokens, caps.tokens), ("targets", costs.targets, caps.targets)):
        too_big = int((cost > cap).sum())
        if too_big:
            where = f"{too_big} of {len(cost)} {split} pairs" if split else f"{too_big} of {len(cost)} pairs"
            raise UserError(
                f"{where} need more than rows.{name} = {cap} ({int(cost.max())} at most); raise rows.{name} to "
                f"{int(cost.max())}, or build the records with a lower build.max_tokens"
            )
    return caps


def _caps(costs: Costs, rows: RowSettings) -> Caps:
    """Returns the caps, filling in those set to 0 from the mean pair so that tokens are the cap that binds."""
    tokens, targets = (max(1, int(column.sum())) for column in costs.whole_groups())
    # A quarter above the mean density: rows rarely fill up on targets first.
    most_targets = rows.targets or _lanes(1.25 * rows.tokens * targets / tokens, costs.targets)
    return Caps(
        tokens=rows.tokens,
        targets=most_targets,
        # Terms cost next to nothing.
        terms=_lanes(2.0 * most_targets * int(costs.terms.sum()) / targets, costs.terms),
        pairs=rows.pairs or math.ceil(2 * rows.tokens * len(costs.tokens) / tokens),
    )


def _lanes(wanted: float, each: np.ndarray) -> int:
    """Rounds up to whole lanes, and to what the largest pair needs."""
    return max(math.ceil(wanted / 64) * 64, int(each.max()))


# The trees of a row, each the records that it holds.
Row = list[tuple[int, ...]]
Item = TypeVar("Item")


class Packed(NamedTuple):
    """Every row of one step, and the shape of all of them."""

    rows: list[Row]
    caps: Caps


def best_fit(records: np.ndarray, costs: Costs, caps: Caps) -> list[Row]:
    """Packs records into rows of trees: largest first, each into the fullest row that still holds it (or the first).

    Records of one group that follow each other form a tree, as long as it fits an empty row.

    >>> ones = np.ones(4, int)
    >>> costs = Costs(np.array([5, 9, 4, 1]), ones, np.array([5, 9, 4, 1]), ones, ones, ones, np.arange(4))
    >>> best_fit(np.arange(4), costs, Caps(tokens=10, targets=9, terms=9, pairs=9))
    [[(1,), (3,)], [(0,), (2,)]]
    """
    limits = np.array(dataclasses.astuple(caps))
    trees, needs = _trees(records, costs, limits)
    rows: list[Row] = []
    left = np.empty((len(trees), len(limits)), np.int64)
    for number in np.argsort(-needs[:, 0], kind="stable"):
        fits = np.flatnonzero((left[: len(rows)] >= needs[number]).all(axis=1))
        if fits.size:
            row = fits[np.argmin(left[fits, 0])]
        else:
            row = len(rows)
            left[row] = limits
            rows.append([])
        rows[row].append(trees[number])
        left[row] -= needs[number]
    return rows


def _trees(records: np.ndarray, costs: Costs, limits: np.ndarray) -> tuple[Row, np.ndarray]:
    """Returns the trees that the records form in their order, and what each needs of the caps, [trees, caps]."""
    ones = np.ones(len(records), np.int64)
    alone = np.stack([costs.tokens[records], costs.targets[records], costs.terms[records], ones], axis=1)
    joined = alone.copy()
    joined[:, :2] = np.stack([costs.joined_tokens[records], costs.joined_targets[records]], axis=1)
    follows = (np.diff(records, prepend=-2) == 1) & (np.diff(costs.group[records], prepend=-1) == 0)
    trees: list[list[int]] = []
    needs: list[np.ndarray] = []
    for place, record in enumerate(records.tolist()):
        if follows[place] and (needs[-1] + joined[place] <= limits).all():
            trees[-1].append(record)
            needs[-1] = needs[-1] + joined[place]
        else:
            trees.append([record])
            needs.append(alone[place])
    return [tuple(tree) for tree in trees], np.stack(needs)


# Equal only to itself: its arrays have no hash, and the order of an epoch is remembered per plan.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Batches of exactly `pairs_per_step` pairs, packed into rows: those of a step have one of the `shapes`.

    Shapes rise in length, and the last one holds every pair. `beside` is what a microbatch costs however short its rows
    are, in columns of one row.

    With a `seed` the groups of pairs are shuffled anew every epoch, and the stream of epochs has no seam (a step may
    hold the end of one and the start of the next, and a group that the step's end cuts goes on in the next step).
    Without one (None) the pairs come once, in order, and the last step may be smaller.
    """

    costs: Costs
    shapes: tuple[Caps, ...]
    beside: float
    pairs_per_step: int
    rows_per_microbatch: int
    steps: int
    seed: int | None

    @property
    def pairs(self) -> int:
        return len(self.costs.tokens)

    @property
    def caps(self) -> Caps:
        """Those of the longest rows."""
        return self.shapes[-1]

    @property
    def lengths(self) -> str:
        """The lengths of rows, in words."""
        return " or ".join(str(caps.tokens) for caps in self.shapes)

    def records(self, step: int) -> np.ndarray:
        """Returns the record numbers of one step, in stream order."""
        stream = np.arange(step * self.pairs_per_step, (step + 1) * self.pairs_per_step)
        if self.seed is None:
            return stream[stream < self.pairs]
        epochs, places = np.divmod(stream, self.pairs)
        return np.concatenate([_epoch(self, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def packed(self, step: int) -> Packed:
        """Returns one step in rows of that shape which costs it least."""
        records = self.records(step)
        packed = functools.cache(lambda caps: best_fit(records, self.costs, caps))
        caps = _cheapest(
            self.shapes,
            lambda caps: self.least_cost(records, caps.tokens),
            lambda caps: self.cost(caps.tokens, len(packed(caps))),
        )
        return Packed(packed(caps), caps)

    def rows(self, step: int) -> list[Row]:
        """Returns every row of one step; see `packed`."""
        return self.packed(step).rows

    def cost(self, length: int, rows: int) -> float:
        """Returns what a step of so many rows costs, in columns of one row a microbatch."""
        return -(-rows // self.rows_per_microbatch) * (length + self.beside)

    def least_cost(self, records: np.ndarray, length: int) -> float:
        """Returns what rows without any gap would cost, infinity where a pair is longer than a row."""
        if self.costs.tokens[records].max() > length:
            return math.inf
        return self.cost(length, -(-int(self.costs.joined_tokens[records].sum()) // length))

    @functools.cached_property
    def most_rows(self) -> int:
        """The most rows that any step needs."""
        return max(len(self.rows(step)) for step in range(self.steps))

    @property
    def microbatches(self) -> int:
        """The most microbatches that any step needs: the leading dim of every batch."""
        return math.ceil(self.most_rows / self.rows_per_microbatch)


def training_plan(
    costs: Costs, rows: RowSettings, *, global_batch: int, epochs: float, steps: int, seed: int, multiple: int
) -> Plan:
    """Returns the plan of a training run of `steps` steps, or of `epochs` passes where `steps` is 0.

    See `with_lengths` for `multiple`.

    Raises:
        UserError: more pairs a step than the dataset holds, or pairs that fit no row.
    """
    pairs = len(costs.tokens)
    if global_batch > pairs:
        raise UserError(f"train.global_batch is {global_batch} pairs, but the train split holds only {pairs}")
    plan = Plan(
        costs=costs,
        shapes=(resolve_caps(costs, rows),),
        beside=_BESIDE * rows.tokens,
        pairs_per_step=global_batch,
        rows_per_microbatch=rows.rows_per_microbatch,
        steps=steps or max(1, int(epochs * pairs / global_batch)),
        seed=seed,
    )
    return with_lengths(plan, rows, multiple, rows.lengths)


def pass_plan(costs: Costs, rows: RowSettings, *, pairs_per_step: int) -> Plan:
    """Returns the plan of one pass over all pairs in order (held-out evaluation, reference log-probs)."""
    return Plan(
        costs=costs,
        shapes=(resolve_caps(costs, rows),),
        beside=_BESIDE * rows.tokens,
        pairs_per_step=pairs_per_step,
        rows_per_microbatch=rows.rows_per_microbatch,
        steps=math.ceil(len(costs.tokens) / pairs_per_step),
        seed=None,
    )


# Rows are as long as a multiple of this.
_LANES = 128
# So many lengths at most are compared, on steps of about so many pairs.
_LENGTHS, _SAMPLED_PAIRS = 32, 2048
# What a microbatch costs however short its rows are, as a part of its columns at the full length: the gradients of all
# parameters are summed, and split parameters gathered. Measured: an eighth to a half (EXPERIMENTS.md).
_BESIDE = 0.25
# So many steps of a run a further length must save, to be worth the program that is compiled for it.
_WORTH = 32


def with_lengths(plan: Plan, rows: RowSettings, multiple: int, most: int) -> Plan:
    """Returns the plan with at most `most` lengths of rows, those that cost its steps least (0: with `rows.tokens`).

    Lengths are whole `multiple`s: a mesh may split the tokens of a row.

    A step's last microbatch is computed whole however few rows it has, so that rows which just fill the microbatches
    save up to half of all columns; steps differ in what they need, so that each may choose. One length holds every
    pair, others are for steps without the longest ones. Some steps stand for all.
    """
    if not most:
        return plan
    records = _sampled(plan)

    @functools.cache
    def caps(length: int) -> Caps:
        return _caps(plan.costs, dataclasses.replace(rows, tokens=length))

    @functools.cache
    def bounds(length: int) -> np.ndarray:
        return np.array([plan.least_cost(each, length) for each in records])

    @functools.cache
    def costs(length: int) -> np.ndarray:
        found = bounds(length).copy()
        for step in np.flatnonzero(np.isfinite(found)):
            found[step] = plan.cost(length, len(best_fit(records[step], plan.costs, caps(length))))
        return found

    lengths, longest = [*_lengths(rows, multiple), rows.tokens], plan.costs.tokens.max()
    spent, chosen = np.full(len(records), np.inf), []
    for _ in range(most):
        least, total = (functools.partial(_total, spent, of) for of in (bounds, costs))
        length = _cheapest([each for each in lengths if chosen or each >= longest], least, total)
        if chosen and plan.steps * (1 - total(length) / spent.sum()) < _WORTH:
            break
        chosen.append(length)
        spent = np.minimum(spent, costs(length))
    return dataclasses.replace(plan, shapes=tuple(caps(length) for length in sorted(chosen)))


def _sampled(plan: Plan) -> list[np.ndarray]:
    """Returns the records of some steps: of a shuffled plan the first ones, whether it ends before them or not."""
    most = max(2, _SAMPLED_PAIRS // plan.pairs_per_step)
    steps = range(most) if plan.seed is not None else range(0, plan.steps, -(-plan.steps // most))
    return [plan.records(step) for step in steps]


def _total(spent: np.ndarray, costs: Callable[[int], np.ndarray], length: int) -> float:
    """Returns what steps cost that may have one length more than those by which they cost what is `spent`."""
    return float(np.minimum(spent, costs(length)).sum())


def _lengths(rows: RowSettings, multiple: int) -> range:
    """The lengths below `rows.tokens`."""
    lanes = math.lcm(_LANES, multiple)
    lanes *= -(-rows.tokens // (_LENGTHS * lanes))
    return range(lanes, rows.tokens, lanes)


def _cheapest(candidates: Iterable[Item], bound: Callable[[Item], float], cost: Callable[[Item], float]) -> Item:
    """Returns the candidate of least cost; none costs less than its `bound`, which is told without costing it."""
    best, least = None, math.inf
    bounded = [(bound(candidate), candidate) for candidate in candidates]
    for at_least, candidate in sorted(bounded, key=lambda each: each[0]):
        if at_least >= least:
            break
        found = cost(candidate)
        if found < least:
            best, least = candidate, found
    assert best is not None
    return best


@functools.lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> np.ndarray:
    """The records of one epoch: groups in a random order, the records of each in theirs."""
    assert plan.seed is not None
    order = _order(plan.seed, epoch, int(plan.costs.group[-1]) + 1)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.argsort(rank[plan.costs.group], kind="stable")


def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A shuffle made of hashes, so that no NumPy version can change the order of a resumed run."""
    keys = mix64(np.arange(count, dtype=np.uint64) + mix64(np.uint64(seed) + mix64(np.uint64(epoch))))
    return np.argsort(keys, kind="stable")
