"""The Grain pipeline: one element is one whole step, read by random access and laid out as the plan says."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import grain
import numpy as np
from absl import flags

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

    Rows are split over hosts by position, so that the union over hosts is the same batch on any number of hosts.
    """

    split: RandomAccess[Example]
    plan: Plan
    rows: RowSettings
    weighting: Weighting
    reference: RandomAccess[np.ndarray] | None
    host: int
    hosts: int

    def __post_init__(self):
        if self.plan.rows_per_microbatch % self.hosts:
            raise UserError(
                f"rows.rows_per_microbatch is {self.plan.rows_per_microbatch}: it must be a multiple of the "
                f"{self.hosts} hosts"
            )

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> RowBatch:
        rows = self.plan.rows_per_microbatch
        local = rows // self.hosts
        batch = empty_batch((self.plan.microbatches, local), **dataclasses.asdict(self.plan.caps))
        for number, trees in enumerate(self.plan.rows(step)):
            microbatch, row = divmod(number, rows)
            if row // local == self.host:
                laid = [lay_out([self.split[i] for i in tree], tree, self.rows, self.weighting) for tree in trees]
                place(batch, (microbatch, row % local), laid, [self._ref_logps(tree) for tree in trees])
        return batch

    def _ref_logps(self, tree: tuple[int, ...]) -> np.ndarray | None:
        return None if self.reference is None else np.concatenate([self.reference[record] for record in tree])


def _ignore_interrupt(worker: int, workers: int) -> None:
    """Ctrl-C goes to the whole process group: the trainer answers it, its workers end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def iterate(source: StepSource, settings: PipelineSettings, steps: Sequence[int]) -> Iterator[RowBatch]:
    """Yields the batches of these steps (`range(start, stop)`, say) in order, prefetched in the background."""
    batches = grain.MapDataset.source(steps).map(source.__getitem__)
    if settings.workers:
        serial = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        options = grain.MultiprocessingOptions(num_workers=settings.workers, per_worker_buffer_size=settings.prefetch)
        # Grain reads its own absl flags there, which nobody parses in a program without absl's app.run.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        return iter(serial.mp_prefetch(options, worker_init_fn=_ignore_interrupt))
    options = grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.prefetch)
    return iter(batches.to_iter_dataset(options))
