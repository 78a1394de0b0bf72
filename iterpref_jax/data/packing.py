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
    """The resolved shape of a row: T tokens, G targets, E terms, P pairs."""

    tokens: int
    targets: int
    terms: int
    pairs: int


def resolve_caps(costs: Costs, rows: RowSettings, split: str = "") -> Caps:
    """Returns the caps, filling in those set to 0 from the mean pair so that tokens are the cap that binds.

    Raises:
        UserError: pairs that do not fit an empty row, with their number and the size that would hold them.
    """
    tokens, targets = (max(1, int(column.sum())) for column in costs.whole_groups())
    # A quarter above the mean density: rows rarely fill up on targets first.
    most_targets = rows.targets or _lanes(1.25 * rows.tokens * targets / tokens, costs.targets)
    caps = Caps(
        tokens=rows.tokens,
        targets=most_targets,
        # Terms cost next to nothing.
        terms=_lanes(2.0 * most_targets * int(costs.terms.sum()) / targets, costs.terms),
        pairs=rows.pairs or math.ceil(2 * rows.tokens * len(costs.tokens) / tokens),
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


def _lanes(wanted: float, each: np.ndarray) -> int:
    """Rounds up to whole lanes, and to what the largest pair needs."""
    return max(math.ceil(wanted / 64) * 64, int(each.max()))


Row = list[tuple[int, ...]]


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
    """Batches of exactly `pairs_per_step` pairs, packed into rows of `caps`.

    With a `seed` the groups of pairs are shuffled anew every epoch, and the stream of epochs has no seam (a step may
    hold the end of one and the start of the next, and a group that the step's end cuts goes on in the next step).
    Without one (None) the pairs come once, in order, and the last step may be smaller.
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
        return np.concatenate([_epoch(self, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def rows(self, step: int) -> list[Row]:
        """Returns every row of one step: its trees, each the records that it holds."""
        return best_fit(self.records(step), self.costs, self.caps)

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

    See `shortened` for `multiple`.

    Raises:
        UserError: more pairs a step than the dataset holds, or pairs that fit no row.
    """
    pairs = len(costs.tokens)
    if global_batch > pairs:
        raise UserError(f"train.global_batch is {global_batch} pairs, but the train split holds only {pairs}")
    plan = Plan(
        costs=costs,
        caps=resolve_caps(costs, rows),
        pairs_per_step=global_batch,
        rows_per_microbatch=rows.rows_per_microbatch,
        steps=steps or max(1, int(epochs * pairs / global_batch)),
        seed=seed,
    )
    return shortened(plan, rows, multiple)


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


# Rows are as long as a multiple of this.
_LANES = 128
# So many lengths at most are compared, on steps of about so many pairs.
_LENGTHS, _SAMPLED_PAIRS = 32, 2048
# What a microbatch costs however short its rows are, as a part of its columns at the full length: the gradients of all
# parameters are summed, and split parameters gathered. Measured: an eighth to a half (EXPERIMENTS.md).
_BESIDE = 0.25


def shortened(plan: Plan, rows: RowSettings, multiple: int) -> Plan:
    """Returns the plan with rows of the length that costs its steps least, where `rows.shorten` is set.

    Lengths are whole `multiple`s: a mesh may split the tokens of a row.

    A step's last microbatch is computed whole however few rows it has, so that rows which just fill the microbatches of
    most steps save up to half of all columns. Some steps stand for all: for a shuffled plan the first ones, whether it
    ends before them or not, so that a run which is made longer keeps its rows.
    """
    if not rows.shorten:
        return plan
    most = max(2, _SAMPLED_PAIRS // plan.pairs_per_step)
    steps = range(most) if plan.seed is not None else range(0, plan.steps, -(-plan.steps // most))
    records = [plan.records(step) for step in steps]
    needs = [int(plan.costs.joined_tokens[each].sum()) for each in records]

    def cost(length: int, counts: list[int]) -> float:
        microbatches = sum(-(-count // plan.rows_per_microbatch) for count in counts)
        return microbatches * (length + _BESIDE * rows.tokens)

    def least(length: int) -> float:
        return cost(length, [-(-need // length) for need in needs])

    best, found = plan, cost(rows.tokens, [len(best_fit(each, plan.costs, plan.caps)) for each in records])
    for length in sorted(_lengths(plan, rows, multiple), key=least):
        if least(length) >= found:
            break
        caps = resolve_caps(plan.costs, dataclasses.replace(rows, tokens=length))
        costs = cost(length, [len(best_fit(each, plan.costs, caps)) for each in records])
        if costs < found:
            best, found = dataclasses.replace(plan, caps=caps), costs
    return best


def _lengths(plan: Plan, rows: RowSettings, multiple: int) -> range:
    """The lengths below `rows.tokens` that hold every pair."""
    lanes = math.lcm(_LANES, multiple)
    lanes *= -(-rows.tokens // (_LENGTHS * lanes))
    longest = int(plan.costs.tokens.max())
    return range(-(-longest // lanes) * lanes, rows.tokens, lanes)


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
