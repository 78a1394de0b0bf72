"""The run's own step compiled from shapes alone, for devices that need not be there; no array is ever made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from iterpref_jax.data.batch import RowBatch, empty_batch
from iterpref_jax.data.packing import Caps
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.parallel.mesh import make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.parallel.topology import Topology
from iterpref_jax.train.optimizer import make_optimizer, make_schedule
from iterpref_jax.train.run import RunSettings
from iterpref_jax.train.step import (
    TrainState,
    abstract_state,
    batch_shardings,
    jitted,
    make_train_step,
    state_shardings,
)


class DoesNotFit(Exception):
    """The step needs more memory than a device has; the message is the compiler's, or says how much more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes of one device's memory that a step holds.

    `peak` is the most at any time, by the compiler's assignment of buffers: the state and the batch, which are there
    all the time (the new state takes the place of the old one), and `temporaries`.
    """

    params: int
    opt_state: int
    batch: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step that is ready to run on the devices of its topology; `text` is the optimised program."""

    memory: DeviceMemory
    text: str


def compile_step(
    settings: RunSettings, config: ModelConfig, caps: Caps, *, microbatches: int, topology: Topology
) -> CompiledStep:
    """Compiles what `iterpref train` runs with these settings, for a model of shape `config` and rows of `caps`.

    Raises:
        DoesNotFit: the step needs more than a device's memory.
        UserError: a mesh that the devices do not fill, or rows that it does not split evenly.
    """
    placement = Placement(make_mesh(settings.mesh, topology.devices))
    decoder = Decoder(config, settings.model.compute, placement, settings.model.lora)
    schedule = make_schedule(settings.optimizer, max(1, settings.train.steps))
    optimizer = make_optimizer(settings.optimizer, schedule)
    shardings = state_shardings(decoder, optimizer, settings.model.param_dtype, placement)
    state = _placed(abstract_state(decoder, optimizer, settings.model.param_dtype), shardings)
    batch = abstract_batch(caps, (microbatches, settings.rows.rows_per_microbatch), placement)
    step = make_train_step(decoder, settings.objective, optimizer, schedule)
    lowered = jitted(step, shardings).lower(state, batch)
    compiled = _compile(lowered, topology)
    memory = _memory(state, batch, _peak(compiled.memory_analysis(), placement.platform))
    if memory.peak > topology.chip.hbm_bytes:
        raise DoesNotFit(f"needs {memory.peak} bytes a device of {topology.chip.hbm_bytes}")
    return CompiledStep(memory, compiled.as_text() or "")


def abstract_batch(caps: Caps, leading: tuple[int, int], placement: Placement) -> RowBatch:
    """Returns a batch of `leading` (microbatches, rows) as `jax.ShapeDtypeStruct`s in their shards."""
    batch = jax.eval_shape(lambda: empty_batch(leading, **dataclasses.asdict(caps)))
    return _placed(batch, batch_shardings(batch, placement))


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def _compile(lowered: jax.stages.Lowered, topology: Topology) -> jax.stages.Compiled:
    try:
        return lowered.compile(compiler_options=topology.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(str(error)) from error


def _memory(state: TrainState, batch: RowBatch, peak: int) -> DeviceMemory:
    held = {"params": _bytes(state.all_params), "opt_state": _bytes(state.opt_state), "batch": _bytes(batch)}
    return DeviceMemory(**held, temporaries=peak - sum(held.values()), peak=peak)


def _peak(stats: Any, platform: str) -> int:
    # TPUs share memory among temporaries that their sum counts apart; elsewhere the peak leaves temporaries out.
    if platform == "tpu":
        return stats.peak_memory_in_bytes
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes


def _bytes(placed: Any) -> int:
    """Returns the bytes of one device's shards."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(placed))
