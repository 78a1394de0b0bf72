"""What the steps of a run hold: from a dataset's index, or from pairs of stated lengths where there is none yet."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.data.layout import Costs, costs
from iterpref_jax.data.packing import Caps, Packed, Plan, training_plan
from iterpref_jax.data.pipeline import RandomAccess, StepSource
from iterpref_jax.data.schema import Example, Split, counts, make_index
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.preference import used_targets
from iterpref_jax.plan.settings import PairLengths
from iterpref_jax.train.run import RunSettings

# So many steps, spread over the run, stand for all of them where rows are counted.
SAMPLED_STEPS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """All pairs of a run, and the rows of some steps."""

    settings: RunSettings
    costs: Costs
    split: RandomAccess[Example]

    @functools.cached_property
    def plan(self) -> Plan:
        train = self.settings.train
        return training_plan(
            self.costs,
            self.settings.rows,
            global_batch=train.global_batch,
            epochs=train.epochs,
            steps=train.steps,
            seed=self.settings.seed,
            # -1 is not known here; it is a power of two then, as good as always.
            multiple=max(1, self.settings.mesh.sequence),
        )

    @functools.cached_property
    def packed(self) -> list[Packed]:
        """Some steps."""
        steps = np.unique(np.linspace(0, self.plan.steps - 1, SAMPLED_STEPS).astype(int))
        return [self.plan.packed(int(step)) for step in steps]

    @functools.cached_property
    def first_step(self) -> RowBatch:
        """The rows of the first step, one after the other [row, ...], padding left out."""
        rows = self.settings.rows
        source = StepSource(
            split=self.split,
            plan=self.plan,
            rows=rows,
            weighting=self.settings.weighting,
            reference=None,
            own=range(rows.rows_per_microbatch),
        )
        found = RowBatch(*(np.asarray(x).reshape(-1, x.shape[-1]) for x in source[0]))
        holds = found.pair_weight_RP.sum(-1) > 0
        return RowBatch(*(x[holds] for x in found))

    @functools.cached_property
    def used(self) -> np.ndarray:
        """Which targets of the first step's rows are scored [row, G]."""
        return np.asarray(used_targets(self.first_step))

    @property
    def pairs(self) -> int:
        """The pairs of the first step."""
        return int((self.first_step.pair_weight_RP > 0).sum())

    @property
    def positions(self) -> np.ndarray:
        """The place in its branch of every token of the first step's rows, padding left out."""
        return self.first_step.depth_RT[self.first_step.visible_until_RT > 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The steps of a run with these settings.

    `pairs` are those of an epoch, and `source` says where they come from.
    """

    settings: RunSettings
    sample: Sample
    pairs: int
    source: str

    def with_settings(self, settings: RunSettings) -> Workload:
        """Returns the same pairs in a run of another mesh, remat or microbatch; the length of rows follows from it."""
        sample = self.sample
        if settings.rows.lengths:
            sample = _repacked(sample, settings.rows.rows_per_microbatch, settings.mesh.sequence)
        return dataclasses.replace(self, settings=settings, sample=sample)

    @property
    def caps(self) -> Caps:
        return self.sample.plan.caps

    @property
    def microbatches(self) -> int:
        """The microbatches of the largest step, which is what is compiled."""
        return math.ceil(self.sample.plan.most_rows / self.settings.rows.rows_per_microbatch)

    @property
    def used_microbatches(self) -> float:
        """The microbatches of a step that hold pairs, on average."""
        return sum(self.slots.values()) / self.settings.rows.rows_per_microbatch

    @property
    def slots(self) -> dict[int, float]:
        """Length -> the rows of that length in the microbatches of a step, on average; some are padding."""
        a_microbatch, packed = self.settings.rows.rows_per_microbatch, self.sample.packed
        found = dict.fromkeys((caps.tokens for caps in self.sample.plan.shapes), 0.0)
        for rows, caps in packed:
            found[caps.tokens] += a_microbatch * math.ceil(len(rows) / a_microbatch) / len(packed)
        return found

    @property
    def rows(self) -> float:
        """The rows of a step, on average."""
        return float(np.mean([len(rows) for rows, _ in self.sample.packed]))

    @property
    def steps(self) -> float:
        """The steps of an epoch."""
        return self.pairs / self.settings.train.global_batch


def with_rows(settings: RunSettings, rows_per_microbatch: int) -> RunSettings:
    """Returns settings with so many rows a microbatch."""
    return dataclasses.replace(
        settings, rows=dataclasses.replace(settings.rows, rows_per_microbatch=rows_per_microbatch)
    )


# A search asks for the same few again and again.
@functools.lru_cache(maxsize=64)
def _repacked(sample: Sample, rows_per_microbatch: int, sequence: int) -> Sample:
    settings = with_rows(sample.settings, rows_per_microbatch)
    settings = dataclasses.replace(settings, mesh=dataclasses.replace(settings.mesh, sequence=sequence))
    return sample if settings == sample.settings else dataclasses.replace(sample, settings=settings)


def made_workload(settings: RunSettings, lengths: PairLengths, pairs: int) -> Workload:
    """Returns a workload of pairs that all have the same lengths.

    Raises:
        UserError: a pair that fits no row.
    """
    example = lengths.example()
    place = {"shard": 0, "offset": 0, "length": 0, "crc": 0}
    row = place | counts(example)
    # Enough for every step to be like all others; an epoch of millions of equal pairs says no more.
    made = min(pairs, 2 * settings.train.global_batch)
    if pairs < settings.train.global_batch:
        raise UserError(f"train.global_batch is {settings.train.global_batch} pairs, but the epoch has {pairs}")
    index = make_index([row] * made)
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=1.0, steps=0))
    sample = Sample(settings, costs(index, settings.rows, settings.weighting), [example] * made)
    return Workload(
        settings=settings,
        sample=sample,
        pairs=pairs,
        source=f"made pairs: {lengths.describe()}",
    )


def dataset_workload(settings: RunSettings, split: Split, path: str, pairs: int | None) -> Workload:
    """Returns the workload of a dataset's training split; `pairs` are its own where nothing else is said."""
    return Workload(
        settings=settings,
        sample=Sample(settings, costs(split.index, settings.rows, settings.weighting), split),
        pairs=len(split) if pairs is None else pairs,
        source=f"{path}: {len(split)} pairs",
    )
