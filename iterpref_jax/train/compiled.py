"""The run's own step compiled from shapes alone, for devices that need not be there; no array is ever made."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from iterpref_jax.data.batch import RowBatch, empty_batch
from iterpref_jax.data.packing import Caps
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.models.lora import parted
from iterpref_jax.models.transformer import abstract_params, param_shardings
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

HOST_MEMORY = "pinned_host"
# What the TPU's compiler says of a program that is too large, by version; its "temporaries" hold the arguments too.
_NEEDS = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """The step needs more memory than a device has; the message is the compiler's, or says how much more.

    `memory` is what it needs, as far as the compiler says it (else None), and `limit` what there is for programs.
    """

    def __init__(self, message: str, memory: DeviceMemory | None, limit: int):
        super().__init__(message)
        self.memory, self.limit = memory, limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes of one device's memory that a step holds.

    `peak` is the most at any time, by the compiler's assignment of buffers: the state and the batch, which are there
    all the time (the new state takes the place of the old one), and `temporaries`. `host` is the part of the state that
    lies in its host's memory instead.
    """

    params: int
    opt_state: int
    batch: int
    temporaries: int
    peak: int
    host: int


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
    state, shardings = _abstract(settings, decoder)
    batch = abstract_batch(caps, (microbatches, settings.rows.rows_per_microbatch), placement)
    schedule = make_schedule(settings.optimizer, max(1, settings.train.steps))
    step = make_train_step(
        decoder,
        settings.objective,
        make_optimizer(settings.optimizer, schedule),
        schedule,
        accumulate_dtype=settings.train.accumulate_dtype,
    )
    lowered = jitted(step, shardings).lower(state, batch)
    compiled = _compile(lowered, topology, state, batch)
    memory = _memory(state, batch, _peak(compiled.memory_analysis(), placement.platform))
    if memory.peak > topology.usable_bytes:
        message = f"needs {memory.peak} bytes a device of {topology.usable_bytes}"
        raise DoesNotFit(message, memory, topology.usable_bytes)
    return CompiledStep(memory, compiled.as_text() or "")


def state_bytes(settings: RunSettings, decoder: Decoder) -> int:
    """Returns the bytes of parameters and optimizer in one device's own memory."""
    state, _ = _abstract(settings, decoder)
    return _bytes(state)


def gradient_bytes(settings: RunSettings, decoder: Decoder, microbatches: int) -> int:
    """Returns the bytes of one device's gradients: in the parameters' dtype, or the sum over several microbatches."""
    assert decoder.placement is not None
    dtype = settings.model.param_dtype if microbatches == 1 else settings.train.accumulate_dtype
    shapes, _ = parted(abstract_params(decoder.config, dtype, decoder.lora))
    shardings, _ = parted(param_shardings(decoder.config, dtype, decoder.placement, decoder.lora))
    placed = _placed(shapes, shardings)
    # Adapters are float32 whatever the dtype of their base.
    size = 4 if decoder.lora.rank and microbatches == 1 else jnp.dtype(dtype).itemsize
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * size for x in jax.tree.leaves(placed))


def abstract_batch(caps: Caps, leading: tuple[int, int], placement: Placement) -> RowBatch:
    """Returns a batch of `leading` (microbatches, rows) as `jax.ShapeDtypeStruct`s in their shards."""
    batch = jax.eval_shape(lambda: empty_batch(leading, **dataclasses.asdict(caps)))
    return _placed(batch, batch_shardings(batch, placement))


def _abstract(settings: RunSettings, decoder: Decoder) -> tuple[TrainState, TrainState]:
    """Returns the state's shapes in their shards, and the shardings alone."""
    assert decoder.placement is not None
    optimizer = make_optimizer(settings.optimizer, make_schedule(settings.optimizer, 1))
    shardings = state_shardings(decoder, optimizer, settings.model.param_dtype, decoder.placement)
    return _placed(abstract_state(decoder, optimizer, settings.model.param_dtype), shardings), shardings


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def _compile(lowered: jax.stages.Lowered, topology: Topology, state: TrainState, batch: RowBatch) -> Any:
    try:
        return lowered.compile(compiler_options=topology.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = next(filter(None, (pattern.search(str(error)) for pattern in _NEEDS)), None)
        if found is None:
            raise DoesNotFit(str(error), None, topology.usable_bytes) from error
        needed, limit = (int(float(number) * _UNITS[unit]) for number, unit in (found.groups()[:2], found.groups()[2:]))
        raise DoesNotFit(str(error), _memory(state, batch, needed), limit) from error


def _memory(state: TrainState, batch: RowBatch, peak: int) -> DeviceMemory:
    held = {"params": state.all_params, "opt_state": state.opt_state, "batch": batch}
    near = {name: _bytes(tree) for name, tree in held.items()}
    far = sum(_bytes(tree, is_host=True) for tree in held.values())
    return DeviceMemory(**near, temporaries=peak - sum(near.values()), peak=peak, host=far)


def _peak(stats: Any, platform: str) -> int:
    # TPUs share memory among temporaries that their sum counts apart; elsewhere the peak leaves temporaries out.
    if platform == "tpu":
        return stats.peak_memory_in_bytes
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes


def _bytes(placed: Any, *, is_host: bool = False) -> int:
    """Returns the bytes of one device's shards, of those in its own memory or in its host's."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(placed)
        if (x.sharding.memory_kind == HOST_MEMORY) == is_host
    )
