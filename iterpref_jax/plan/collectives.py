"""The collectives of a compiled step: kind, devices, bytes, and how often each runs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from iterpref_jax.parallel.interconnect import Exchange, Interconnect
from iterpref_jax.plan.hlo import Computation, Instruction, Program

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
# Of these the result is the smaller or the larger array; of the others it is as large as what went in.
_LISTED = re.compile(r"replica_groups=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)?\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# mesh['a'=2,'b'=4] {'b'}: the mesh of all devices, and the axes that a group spans; 'b':(1)2 is a part of an axis,
# which is cut into 1 x 2 x rest.
_MESH = re.compile(
    r"replica_groups=@?\w*mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# A TPU's compiler writes an asynchronous collective down in each fusion from its start to its end.
_CHAIN, _CHAIN_START = 'chain_id="', 'custom_call_target="AsyncCollectiveStart"'
_PAIRS = re.compile(r"source_target_pairs=\{(\{\d+,\d+\}(?:,\{\d+,\d+\})*)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective instruction: `size` is the bytes of the whole array that it gathers, scatters or sums.

    Of an all-to-all or a permutation it is one device's part. `group` is one of its groups of devices (numbers in the
    mesh), `count` how often it runs in a step.
    """

    kind: str
    size: int
    group: tuple[int, ...]
    count: float
    op_name: str
    # Of a permutation: another one beside it goes the other way, over the other half of the links.
    both_ways: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Total:
    """All collectives of one kind along the same axes in one step of one device."""

    kind: str
    axes: tuple[str, ...]
    devices: int
    count: float
    size: float
    exchange: Exchange


def collectives(program: Program, runs: dict[str, float], devices: int, slices: int = 1) -> list[Collective]:
    """Returns the collectives that run, among more than one device each.

    Between TPU slices, which are the outermost parts of the mesh, they are transfers by way of the hosts.
    """
    found = []
    for name, computation in program.computations.items():
        scatters, pairs = _is_reduce_scatter(name), _all_pairs(computation)
        for one in computation.instructions.values() if runs[name] else ():
            between = _BETWEEN_SLICES.search(one.attributes) if one.opcode == "send" else None
            kind = between[1].lower().replace("_", "-") if between else one.opcode.removesuffix("-start")
            if kind not in KINDS or _is_further_part(one, computation):
                continue
            group = tuple(range(0, devices, devices // slices)) if between else next(_groups(one, devices))
            if len(group) > 1:
                size = _size(kind, one, computation, len(group))
                kind = "reduce-scatter" if kind == "all-reduce" and scatters else kind
                found.append(
                    Collective(
                        kind=kind,
                        size=size,
                        group=group,
                        count=runs[name],
                        op_name=one.op_name,
                        both_ways=_reversed(_pairs(one)) in pairs,
                    )
                )
    return found


def is_part_of_chain(one: Instruction) -> bool:
    """Whether this is one of the places where an asynchronous collective goes on beside other work."""
    return one.opcode in KINDS and _CHAIN in one.attributes


def _is_further_part(one: Instruction, computation: Computation) -> bool:
    return is_part_of_chain(one) and not any(_CHAIN_START in user.attributes for user in computation.users(one.name))


def _all_pairs(computation: Computation) -> set[frozenset]:
    return {_pairs(one) for one in computation.instructions.values() if one.opcode.startswith("collective-permute")}


def _pairs(one: Instruction) -> frozenset[tuple[str, str]]:
    """The devices (source, target) of a permutation; none of any other instruction."""
    found = _PAIRS.search(one.attributes)
    return frozenset(re.findall(r"\{(\d+),(\d+)\}", found[1]) if found else ())


def _reversed(pairs: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]] | None:
    return frozenset((target, source) for source, target in pairs) or None


def totals(found: list[Collective], network: Interconnect) -> list[Total]:
    """Returns what the collectives cost by kind and axes, the most bytes first."""
    sums: dict[tuple, Total] = {}
    for one in found:
        key = one.kind, network.axes(one.group)
        cost = network.exchange(one.kind, one.size, one.group).times(one.count)
        if one.both_ways:
            cost = dataclasses.replace(cost, link_seconds=cost.link_seconds / 2)
        before = sums.get(key)
        if before:
            old, new = dataclasses.asdict(before.exchange), dataclasses.asdict(cost)
            cost = Exchange(**{name: old[name] + new[name] for name in old})
        sums[key] = Total(
            kind=one.kind,
            axes=key[1],
            devices=len(one.group),
            count=one.count + (before.count if before else 0),
            size=one.size * one.count + (before.size if before else 0),
            exchange=cost,
        )
    return sorted(sums.values(), key=lambda total: -total.exchange.link_bytes - total.exchange.network_bytes)


def _is_reduce_scatter(computation: str) -> bool:
    """Whether a fusion of an all-reduce and a slice of its result runs as one reduce-scatter."""
    return "all-reduce-scatter" in computation


def _size(kind: str, one: Instruction, computation: Computation, group: int) -> int:
    """Returns the bytes of the whole array (see `Collective`)."""
    operands = [computation.instructions[name] for name in one.operands if name in computation.instructions]
    given = sum(operand.bytes for operand in operands)
    if kind == "all-gather":
        return given * group
    # What starts an asynchronous collective returns its operands and scratch as well: the operands say it all.
    return given or one.bytes


def _groups(one: Instruction, devices: int) -> Iterator[tuple[int, ...]]:
    pairs = _PAIRS.search(one.attributes)
    if pairs:
        for source, target in re.findall(r"\{(\d+),(\d+)\}", pairs[1]):
            if source != target:
                yield int(source), int(target)
        yield (0,)
        return
    iota = _IOTA.search(one.attributes)
    if iota:
        shape, dims, order = ([int(n) for n in (text or "").split(",") if n] for text in iota.groups())
        numbers = np.arange(np.prod(dims)).reshape(dims)
        yield from map(tuple, (numbers.transpose(order) if order else numbers).reshape(shape).tolist())
        return
    mesh = _MESH.search(one.attributes)
    if mesh:
        yield from map(tuple, _groups_of_mesh(*mesh.groups()).tolist())
        return
    listed = _LISTED.search(one.attributes)
    if listed and listed[1]:
        yield from (tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
        return
    if "replica_groups={}" not in one.attributes and "replica_groups=" in one.attributes:
        raise ValueError(f"replica groups that are written in another way: {one.attributes}")
    # Without groups: all devices.
    yield tuple(range(devices))


def _groups_of_mesh(axes: str, order: str | None, transposed: str | None, spanned: str) -> np.ndarray:
    """Returns the groups [group, device] of a mesh with named axes."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values()))
    if order:
        numbers = numbers.reshape([int(n) for n in order.split(",")])
        numbers = numbers.transpose([int(n) for n in transposed.split(",")]) if transposed else numbers
    shape, inside = [], []
    parts = {name: (int(before or 1), int(size or 0)) for name, before, size in _PART.findall(spanned)}
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        part = part or size
        inside += [False, name in parts, False]
        shape += [before, part, size // (before * part)]
    numbers = numbers.reshape(shape)
    sides = sorted(range(len(shape)), key=lambda side: inside[side])
    group = math.prod(size for size, is_in in zip(shape, inside, strict=True) if is_in)
    return numbers.transpose(sides).reshape(-1, group)
