"""A step of a run on devices that need not be there: compiled, taken apart, and timed by its roofline."""

from __future__ import annotations

import dataclasses
import time

from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.decoder import Decoder
from iterpref_jax.parallel.interconnect import Interconnect
from iterpref_jax.parallel.mesh import make_mesh
from iterpref_jax.parallel.rules import Placement
from iterpref_jax.parallel.topology import Topology
from iterpref_jax.plan import hlo, traffic
from iterpref_jax.plan.arithmetic import Work, work
from iterpref_jax.plan.collectives import Total, collectives, totals
from iterpref_jax.plan.largest import Tried, largest
from iterpref_jax.plan.loops import Loops
from iterpref_jax.plan.memory import Memory, saved_bytes, split
from iterpref_jax.plan.roofline import Roofline, roofline
from iterpref_jax.plan.settings import Efficiency
from iterpref_jax.plan.workload import Workload, with_rows
from iterpref_jax.progress import say
from iterpref_jax.train.compiled import CompiledStep, DoesNotFit, compile_step, gradient_bytes
from iterpref_jax.train.run import RunSettings


@dataclasses.dataclass(frozen=True)
class Target:
    """What is planned for: the model's shape, the devices, and what they are taken to reach."""

    config: ModelConfig
    topology: Topology
    efficiency: Efficiency

    def decoder(self, settings: RunSettings) -> Decoder:
        """Returns the run's decoder on these devices; see `make_mesh` and `Decoder` for the errors."""
        placement = Placement(make_mesh(settings.mesh, self.topology.devices))
        return Decoder(self.config, settings.model.compute, placement, settings.model.lora)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One planned step.

    `memory` is None where the compiler refused the step without saying what it needs; what comes from the compiled
    program is None where there is none.
    """

    mesh: dict[str, int]
    remat: str
    rows_per_microbatch: int
    microbatches: int
    compile_seconds: float
    fits: bool
    limit: int
    memory: Memory | None
    refusal: str
    work: Work
    collectives: list[Total] | None
    hbm_bytes: float | None
    host_bytes: float | None
    roofline: Roofline | None


def plan_step(load: Workload, target: Target) -> Planned:
    """Compiles the step of `load.settings` and returns what it needs.

    Raises:
        UserError: a mesh or rows that do not fit the devices or the model.
    """
    settings, decoder = load.settings, target.decoder(load.settings)
    began = time.monotonic()
    step: CompiledStep | None = None
    refusal, limit = "", target.topology.usable_bytes
    try:
        step = compile_step(
            settings, target.config, load.caps, microbatches=load.microbatches, topology=target.topology
        )
        memory = step.memory
    except DoesNotFit as error:
        memory, refusal, limit = error.memory, str(error).splitlines()[0], error.limit
    seconds = time.monotonic() - began
    done = work(load, decoder)
    program = hlo.read(step.text) if step else None
    runs = Loops(program).runs(load.used_microbatches, done.tiles, looped=load.microbatches > 1) if program else {}
    gradients = gradient_bytes(settings, decoder, load.microbatches)
    saved = saved_bytes(program, runs) if program else 0
    planned = Planned(
        mesh=dict(decoder.placement.mesh.shape) if decoder.placement else {},
        remat=settings.model.compute.remat,
        rows_per_microbatch=settings.rows.rows_per_microbatch,
        microbatches=load.microbatches,
        compile_seconds=seconds,
        fits=step is not None,
        limit=limit,
        memory=split(memory, gradients, saved) if memory else None,
        refusal=refusal,
        work=done,
        collectives=None,
        hbm_bytes=None,
        host_bytes=None,
        roofline=None,
    )
    return _timed(planned, program, runs, decoder, target) if program else planned


def _timed(planned: Planned, program: hlo.Program, runs: dict[str, float], decoder: Decoder, target: Target) -> Planned:
    assert decoder.placement is not None
    mesh = decoder.placement.mesh
    topology = target.topology
    slices = topology.slices if topology.chip.ring else 1
    found = totals(collectives(program, runs, mesh.devices.size, slices), Interconnect(topology, mesh))
    moved = traffic.hbm_bytes(program, runs)
    return dataclasses.replace(
        planned,
        collectives=found,
        hbm_bytes=moved,
        host_bytes=traffic.host_bytes(program, runs),
        roofline=roofline(
            target.topology.chip,
            target.efficiency,
            flops=planned.work.executed / mesh.devices.size,
            hbm_bytes=moved,
            exchanges=[total.exchange for total in found],
        ),
    )


def whole_rows(settings: RunSettings, target: Target) -> RunSettings:
    """Returns settings whose rows a microbatch the mesh splits evenly: raised to the next multiple, if need be."""
    shards = Placement(make_mesh(settings.mesh, target.topology.devices)).row_shards()
    rows = settings.rows.spread(shards).rows_per_microbatch
    return with_rows(settings, -(-rows // shards) * shards)


def largest_rows(load: Workload, target: Target, planned: Planned) -> int:
    """Returns the most rows a microbatch that fit (0: none do), no more than a step has; compiles several times."""
    shards = Placement(make_mesh(load.settings.mesh, target.topology.devices)).row_shards()
    most = -(-load.sample.plan.most_rows // shards)
    known = {planned.rows_per_microbatch // shards: planned}

    def attempt(rows: int) -> Tried:
        if rows not in known:
            known[rows] = plan_step(load.with_settings(with_rows(load.settings, rows * shards)), target)
        found = known[rows]
        say(f"{rows * shards} rows a microbatch: {'fits' if found.fits else 'does not fit'}")
        return Tried(found.fits, found.memory.peak if found.memory else None, found.limit)

    return shards * largest(attempt, most, planned.rows_per_microbatch // shards)
