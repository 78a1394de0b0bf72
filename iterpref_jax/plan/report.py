"""A plan as a table for people and as plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from iterpref_jax.plan.advice import advice
from iterpref_jax.plan.planning import Planned, Target
from iterpref_jax.plan.workload import Workload

GIB = 2**30
_PARTS = {
    "params": "parameters",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "activations": "activations",
    "temporaries": "temporaries",
    "batch": "batch",
}
_TERMS = {"compute": "compute", "memory": "HBM", "links": "ICI", "network": "DCN"}
_GPU_TERMS = _TERMS | {"links": "NVLink", "network": "network"}


def content(planned: Planned, load: Workload, target: Target, largest: int | None) -> dict[str, Any]:
    """Returns every figure; bytes, seconds and FLOPs, of one device where nothing else is said."""
    topology, caps = target.topology, load.caps
    found: dict[str, Any] = {
        "topology": topology.name,
        "devices": len(topology.devices),
        "slices": topology.slices,
        "model": target.config.model_type,
        "pairs": load.source,
        "row": dataclasses.asdict(caps),
        "efficiency": dataclasses.asdict(target.efficiency),
        **dataclasses.asdict(planned),
        "flops_a_pair": {"executed": planned.work.executed_a_pair, "model": planned.work.model_a_pair},
        "largest_rows_per_microbatch": largest,
        "what_to_change": [] if planned.fits else advice(planned, load, target),
        "epoch": epoch(planned, load, target),
    }
    if planned.roofline:
        found["roofline"] |= {
            "binding": planned.roofline.binding,
            "step_seconds": planned.roofline.seconds,
            "step_seconds_without_overlap": planned.roofline.without_overlap,
            "mfu": _mfu(planned, target),
        }
    return found


def epoch(planned: Planned, load: Workload, target: Target) -> dict[str, float] | None:
    """Returns steps, seconds and chip hours of an epoch by the roofline."""
    if planned.roofline is None:
        return None
    seconds = planned.roofline.seconds * load.steps
    return {
        "pairs": load.pairs,
        "steps": load.steps,
        "seconds": seconds,
        "chip_hours": seconds / 3600 * len(target.topology.devices),
    }


def table(planned: Planned, load: Workload, target: Target, largest: int | None) -> str:
    """Returns the plan in lines for a terminal."""
    return "\n".join(_lines(planned, load, target, largest)) + "\n"


def best(found: list[Planned], load: Workload, target: Target) -> str:
    """Returns the plans of a search in lines for a terminal, the fastest first."""
    if not found:
        return "nothing that was compiled fits; plan for more chips, or with model.param_dtype=bfloat16 or offload\n"
    lines = [f"{target.config.model_type} on {len(target.topology.devices)} x {target.topology.chip.kind}: the best"]
    for planned in found:
        mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in planned.mesh.items())
        lines.append(
            f"  {mesh} --config.model.compute.remat={planned.remat} "
            f"--config.rows.rows_per_microbatch={planned.rows_per_microbatch}"
        )
        spent = epoch(planned, load, target)
        assert planned.roofline is not None
        assert planned.memory is not None
        assert spent is not None
        lines.append(
            f"      {time_of(planned.roofline.seconds).strip()} a step "
            f"({time_of(planned.roofline.without_overlap).strip()} without overlap), "
            f"binding {_names(target)[planned.roofline.binding]}; MFU {_mfu(planned, target):.0%}; peak "
            f"{planned.memory.peak / GIB:.2f} GiB; an epoch {_hours(spent['seconds'])}, "
            f"{spent['chip_hours']:.1f} chip hours"
        )
    return "\n".join(lines) + "\n"


def search_content(found: list[Planned], load: Workload, target: Target) -> dict[str, Any]:
    """Returns the figures of every plan of a search, the fastest first."""
    return {"best": [content(planned, load, target, None) for planned in found]}


def _lines(planned: Planned, load: Workload, target: Target, largest: int | None) -> Iterator[str]:
    topology, lengths = target.topology, load.sample.plan.lengths
    yield f"{target.config.model_type} on {len(topology.devices)} x {topology.chip.kind} ({topology.name})"
    yield _row("mesh", " ".join(f"{axis}={size}" for axis, size in planned.mesh.items()))
    yield _row("pairs", load.source)
    yield _row("rows", f"{lengths} tokens, {load.caps.targets} targets; {load.rows:.1f} a step of {_pairs(load)}")
    used = f"{load.used_microbatches:.1f} used on average"
    yield _row(
        "microbatch",
        f"{planned.rows_per_microbatch} rows, {planned.microbatches} a step ({used}); remat {planned.remat}",
    )
    if largest is not None:
        yield _row("largest", f"{largest} rows a microbatch fit" if largest else "no microbatch fits")
    yield ""
    yield from _memory(planned, load, target)
    if planned.collectives is not None:
        yield from _collectives(planned, target)
    yield from _work(planned)
    if planned.roofline:
        yield from _time(planned, load, target)


def _memory(planned: Planned, load: Workload, target: Target) -> Iterator[str]:
    verdict = "fits" if planned.fits else "DOES NOT FIT"
    yield f"memory a chip: {verdict} ({planned.limit / GIB:.2f} GiB are for programs)"
    if planned.memory:
        for name, title in _PARTS.items():
            yield _row(title, _gib(getattr(planned.memory, name)))
        yield _row("peak", _gib(planned.memory.peak))
        if planned.memory.host:
            yield _row("in the host", _gib(planned.memory.host))
    if not planned.fits:
        yield _row("compiler", planned.refusal)
        yield from (_row("change", each) for each in advice(planned, load, target))
    yield ""


def _collectives(planned: Planned, target: Target) -> Iterator[str]:
    yield "collectives of a step, a chip"
    names = _names(target)
    for total in planned.collectives or ():
        exchange = total.exchange
        sent = [f"{exchange.link_bytes / GIB:.3f} GiB over {names['links']}"] if exchange.link_bytes else []
        sent += [f"{exchange.network_bytes / GIB:.3f} GiB over {names['network']}"] if exchange.network_bytes else []
        axes = "+".join(total.axes)
        yield _row(total.kind, f"{axes} ({total.devices}): {total.count:.0f} times, {', '.join(sent) or 'nothing'}")
    if not planned.collectives:
        yield _row("none", "")
    yield ""


def _work(planned: Planned) -> Iterator[str]:
    work = planned.work
    yield "FLOPs"
    yield _row("a pair", f"{work.model_a_pair / 1e12:.2f} T needed, {work.executed_a_pair / 1e12:.2f} T executed")
    yield _row("a step", f"{work.executed / 1e15:.3f} P executed over all chips")
    yield ""


def _time(planned: Planned, load: Workload, target: Target) -> Iterator[str]:
    roof, names = planned.roofline, _names(target)
    assert roof is not None
    yield "time of a step, if each part ran at a part of its data sheet's speed that is assumed, not measured"
    parts = dataclasses.asdict(target.efficiency)
    for name, seconds in dataclasses.asdict(roof).items():
        mark = "  <- binding" if name == roof.binding else ""
        yield _row(names[name], f"{time_of(seconds)} at {parts[name]:.0%}{mark}")
    apart = f"{time_of(roof.without_overlap).strip()} if nothing is exchanged while chips compute"
    yield _row("step", f"{time_of(roof.seconds)}, {apart}")
    yield _row("MFU", f"{_mfu(planned, target):.0%} of {target.topology.chip.flops / 1e12:.0f} TFLOP/s a chip")
    spent = epoch(planned, load, target)
    assert spent is not None
    yield _row(
        "epoch",
        f"{spent['pairs']:,} pairs in {_count(spent['steps'])} steps: {_hours(spent['seconds'])}, "
        f"{spent['chip_hours']:.1f} chip hours",
    )


def _names(target: Target) -> dict[str, str]:
    return _TERMS if target.topology.chip.ring else _GPU_TERMS


def _mfu(planned: Planned, target: Target) -> float:
    assert planned.roofline is not None
    peak = target.topology.chip.flops * len(target.topology.devices)
    return planned.work.model / (planned.roofline.seconds * peak)


def _row(title: str, text: str) -> str:
    return f"  {title:<20}{text}".rstrip()


def _gib(size: int) -> str:
    return f"{size / GIB:9.3f} GiB"


def time_of(seconds: float) -> str:
    """Returns seconds, or milliseconds where that is less than one, aligned."""
    return f"{seconds:9.3f} s" if seconds >= 1 else f"{1000 * seconds:9.3f} ms"


def _pairs(load: Workload) -> str:
    return f"{load.settings.train.global_batch} pairs"


def _hours(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"
