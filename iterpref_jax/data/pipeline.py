"""The Grain pipeline: one element is one whole step, read by random access and laid out as the plan says."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import grain
import numpy as np
from absl import flags

from iterpref_jax.data import worker
from iterpref_jax.data.batch import RowBatch, empty_batch
from iterpref_jax.data.layout import RowSettings, Weighting, lay_out, place
from iterpref_jax.data.packing import Plan
from iterpref_jax.data.schema import Example
from iterpref_jax.errors import UserError

Item = TypeVar("Item", covariant=True)


class RandomAccess(Protocol[Item]):
    """What a source must offer: its length, and item i at any time."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Item: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Threads that read and lay out steps ahead of the trainer; `workers` > 0 uses processes instead."""

    threads: int
    prefetch: int
    workers: int

    def __post_init__(self):
        if min(self.threads, self.prefetch) < 1 or self.workers < 0:
            raise UserError("data.pipeline.threads and prefetch must be at least 1, workers at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSource:
    """A random-access source of steps: `source[step]` is a numpy `RowBatch` [microbatch, row of this host, ...].

    `own` are the places of this host's rows in a microbatch, rising: only their records are read. The plan knows no
    hosts, so that all of them together make the same batch, however many there are.
    """

    split: RandomAccess[Example]
    plan: Plan
    rows: RowSettings
    weighting: Weighting
    reference: RandomAccess[np.ndarray] | None
    own: Sequence[int]

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> RowBatch:
        places = {row: number for number, row in enumerate(self.own)}
        rows, caps = self.plan.packed(step)
        batch = empty_batch((self.plan.microbatches, len(places)), **dataclasses.asdict(caps))
        for number, trees in enumerate(rows):
            microbatch, row = divmod(number, self.plan.rows_per_microbatch)
            if row in places:
                laid = [lay_out([self.split[i] for i in tree], tree, self.rows, self.weighting) for tree in trees]
                place(batch, (microbatch, places[row]), laid, [self._ref_logps(tree) for tree in trees])
        return batch

    def _ref_logps(self, tree: tuple[int, ...]) -> np.ndarray | None:
        return None if self.reference is None else np.concatenate([self.reference[record] for record in tree])


def _begin_worker(number: int, workers: int) -> None:
    worker.begin()
    # Schedulers send it to the whole group, and the trainer needs batches until all hosts stop after the same update.
    # Grain itself ends its workers by an event, or kills them.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def iterate(source: StepSource, settings: PipelineSettings, steps: Sequence[int]) -> Iterator[RowBatch]:
    """Yields the batches of these steps (`range(start, stop)`, say) in order, prefetched in the background."""
    batches = grain.MapDataset.source(steps).map(source.__getitem__)
    if settings.workers:
        serial = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        options = grain.MultiprocessingOptions(num_workers=settings.workers, per_worker_buffer_size=settings.prefetch)
        # Grain reads its own absl flags there, which nobody parses in a program without absl's app.run.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        return iter(serial.mp_prefetch(options, worker_init_fn=_begin_worker))
    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch)
    return iter(batches.to_iter_dataset(options))
