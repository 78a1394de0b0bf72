"""Which rows of a microbatch are this host's, and one batch over all devices made of every host's own rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iterpref_jax.data.batch import RowBatch
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.lora import Lora
from iterpref_jax.objectives.preference import used_terms
from iterpref_jax.parallel import distributed
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.train.flops import Counts, model_flops
from iterpref_jax.train.metrics import Work
from iterpref_jax.train.step import batch_shardings


def own_rows(placement: Placement, rows: int) -> tuple[int, ...]:
    """Returns the places, rising, of the rows that this host's devices hold of a microbatch of `rows`.

    Hosts that share the devices of one row (a mesh axis that splits something else) both have it.
    """
    shards = placement.sharding(("row",), (rows,)).addressable_devices_indices_map((rows,)).values()
    return tuple(sorted({place for index in shards if index for place in range(*index[0].indices(rows))}))


def place(batch: RowBatch, placement: Placement) -> RowBatch:
    """Puts a batch [A, own R, ...] on the devices, as one batch [A, R, ...] over all hosts."""
    if distributed.process_count() == 1:
        return jax.device_put(batch, batch_shardings(batch, placement))
    parts = placement.row_shards()
    rows = batch.tokens_RT.shape[1] * parts // len(own_rows(placement, parts))
    shapes: Any = RowBatch(*(jax.ShapeDtypeStruct((x.shape[0], rows, *x.shape[2:]), x.dtype) for x in batch))
    own, shardings = own_rows(placement, rows), batch_shardings(shapes, placement)
    return RowBatch(*(_joined(*each, own) for each in zip(batch, shapes, shardings, strict=True)))


def _joined(local: np.ndarray, shape: jax.ShapeDtypeStruct, sharding: Any, own: tuple[int, ...]) -> jax.Array:
    def shard(index: Any) -> np.ndarray:
        rows = range(*index[1].indices(shape.shape[1]))
        # `own` rises and has all of the shard's rows, so they are neighbours in it.
        first = own.index(rows[0])
        return local[(index[0], slice(first, first + len(rows)), *index[2:])]

    return jax.make_array_from_callback(shape.shape, sharding, shard)


class JoinedWork(Work):
    """What one step computes over all hosts, counted on the devices, because each host has its own rows only."""

    def __init__(self, counts: dict[str, jax.Array], shape: tuple[int, ...]):
        self._counts, self._row_slots = counts, math.prod(shape[1:])

    def __getattr__(self, name: str) -> int:
        """Waits for the devices at the first question, when the step has been done anyway."""
        if name not in ("tokens", "pairs", "rows", "targets", "scores", "slots"):
            raise AttributeError(name)
        counts = {name: int(value) for name, value in jax.device_get(self._counts).items()}
        self.__dict__.update(counts, slots=counts.pop("microbatches") * self._row_slots)
        return self.__dict__[name]

    def train_flops(self, config: ModelConfig, lora: Lora) -> float:
        return model_flops(config, Counts(self.tokens, self.targets * config.vocab_size, self.scores), lora)


def work_of(config: ModelConfig) -> Callable[[RowBatch, RowBatch], Work]:
    """Returns (this host's batch, the batch over all hosts) -> what its step computes over all hosts."""
    if distributed.process_count() == 1:
        return lambda batch, placed: Work(batch)
    windows = [kind.window for kind in config.layer_kinds]

    @jax.jit
    def count(batch: RowBatch) -> dict[str, jax.Array]:
        keys = jnp.where(batch.visible_until_RT > 0, batch.depth_RT + 1, 0)
        scores = {window: jnp.minimum(keys, window or keys).sum(dtype=jnp.float32) for window in set(windows)}
        pairs = batch.pair_weight_RP > 0
        return {
            "tokens": (keys > 0).sum(),
            "microbatches": pairs.any((1, 2)).sum(),
            "pairs": pairs.sum(),
            "rows": pairs.any(-1).sum(),
            "targets": jnp.where(used_terms(batch), batch.term_RE + 1, 0).max(-1).sum(),
            "scores": jnp.stack([scores[window] for window in windows]).sum(),
        }

    return lambda batch, placed: JoinedWork(count(placed), placed.tokens_RT.shape)
