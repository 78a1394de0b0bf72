"""Bytes that a compiled step moves to and from a device's memory, counted instruction by instruction.

An operand counts where it is read and a result where it is written; what is fused stays on the chip. Of an array that
is only sliced, or updated in place, the slice counts. Arrays in a TPU's on-chip memory count where they are copied.
"""

from __future__ import annotations

import re

from iterpref_jax.plan.collectives import KINDS, is_part_of_chain
from iterpref_jax.plan.hlo import HBM, HOST, Computation, Instruction, Program, Shape

# Names for arrays, or control: these move nothing themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency", "iota", "rng-get-and-update-state",
}  # fmt: skip
_ENDS = ("-done", "-update")
# Custom calls of the TPU's compiler that name memory and move nothing.
_NAMES_MEMORY = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound)"')


def hbm_bytes(program: Program, runs: dict[str, float]) -> float:
    """Returns the bytes that one device reads from and writes to its memory in a step."""
    fused = _fused(program)
    return sum(
        count * sum(_moved(program, computation, one) for one in computation.instructions.values())
        for name, count in runs.items()
        if count and name not in fused
        for computation in [program.computations[name]]
    )


def host_bytes(program: Program, runs: dict[str, float]) -> float:
    """Returns the bytes that one device exchanges with its host's memory in a step."""
    fused = _fused(program)
    total = 0.0
    for name, count in runs.items():
        computation = program.computations[name]
        for one in computation.instructions.values() if count and name not in fused else ():
            if one.opcode in _FREE or one.opcode.endswith(_ENDS):
                continue
            made = [shape for shape in one.shapes if shape.space == HOST]
            read = [shape for shape in _operands(computation, one) if shape.space == HOST]
            sliced = one.opcode in ("dynamic-slice", "copy-start", "copy", "fusion", "slice")
            total += count * (_total(read, one.bytes) if read and sliced else sum(shape.bytes for shape in made))
    return total


def _total(shapes: list[Shape], most: int) -> int:
    return min(sum(shape.bytes for shape in shapes), most)


def _fused(program: Program) -> set[str]:
    """The computations inside fusions and other instructions whose own operands and results are counted."""
    return {
        name
        for computation in program.computations.values()
        for one in computation.instructions.values()
        for role, names in one.called.items()
        if one.opcode in ("fusion", "custom-call", "async-start")
        for name in names
    }


def _moved(program: Program, computation: Computation, one: Instruction) -> int:
    if one.opcode in _FREE or one.opcode.endswith(_ENDS) or one.opcode.removesuffix("-start") in KINDS:
        return 0
    if one.opcode == "fusion":
        return _of_fusion(program, computation, one)
    if one.opcode == "custom-call" and _NAMES_MEMORY.search(one.attributes):
        return 0
    reads = _operands(computation, one)
    if one.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _in_hbm(one.shapes)
    if one.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _in_hbm(reads[1:]) if len(reads) > 1 else 0
    if one.opcode == "copy-start":
        # Returns (target, source, context).
        return _in_hbm(one.shapes[:1]) + _in_hbm(reads)
    if one.opcode == "slice-start":
        # Returns ((source), target, context): as much is read as is written, and the target may lie on the chip.
        return one.shapes[-2].bytes + _in_hbm(one.shapes[-2:-1])
    if one.opcode.endswith("-start"):
        # Returns its operands and its results.
        return _in_hbm(one.shapes)
    return _in_hbm(reads) + _in_hbm(one.shapes)


def _of_fusion(program: Program, outer: Computation, one: Instruction) -> int:
    inner = _called(program, one)
    handed_on = _handed_on(inner)
    # Parameters of the fused computation are its operands in order, one array each.
    moved = sum(
        _read(program, inner, parameter.name, operand.shapes)
        for parameter, name in zip(inner.parameters, one.operands, strict=False)
        if parameter.name not in handed_on and (operand := outer.instructions.get(name))
    )
    root = inner.root
    roots = [inner.instructions.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
    for made, shape in zip(roots, one.shapes, strict=False):
        if made is not None and made.name in handed_on:
            continue
        update = _update(program, inner, made)
        moved += _in_hbm((shape,)) if update is None else (update if shape.space == HBM else 0)
    return moved


def _handed_on(inner: Computation) -> set[str]:
    """Returns what a fusion has of an asynchronous collective, which goes on beside its own work.

    The collective's buffers go in and out as they are; the collective itself moves nothing here, as any other.
    """
    parts = {one.name for one in inner.instructions.values() if is_part_of_chain(one)}
    if not parts:
        return set()
    if inner.root.opcode != "tuple":
        # Its start or its end, with nothing beside it.
        return set(inner.instructions)
    # The root is the tuple of all that goes out.
    beside = parts | {inner.root.name}
    users = {one.name: inner.users(one.name) for one in inner.parameters}
    return parts | {name for name, by in users.items() if all(user.name in beside for user in by)}


def _called(program: Program, fusion: Instruction) -> Computation:
    return program.computations[fusion.called["calls"][0]]


def _read(program: Program, inner: Computation, name: str, shapes: tuple[Shape, ...]) -> int:
    """Returns what is read of a fusion's operand: slices of it, if nothing else is; nothing where it is overwritten.

    A fusion within the fusion may be what slices it.
    """
    total = 0
    for user in inner.users(name):
        if user.opcode == "bitcast" and not user.is_root:
            total += _read(program, inner, user.name, shapes)
        elif user.opcode == "fusion":
            within = _called(program, user)
            given = zip(within.parameters, user.operands, strict=False)
            total += sum(_read(program, within, one.name, shapes) for one, operand in given if operand == name)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        else:
            return _in_hbm(shapes)
    return min(total, _in_hbm(shapes))


def _update(program: Program, inner: Computation, made: Instruction | None) -> int | None:
    """Returns the bytes of an update in place, or None where a whole array is written."""
    while made is not None and made.opcode in ("bitcast", "copy") and made.operands:
        made = inner.instructions.get(made.operands[0])
    if made is not None and made.opcode == "fusion":
        within = _called(program, made)
        return _update(program, within, within.root) if within.root.opcode != "tuple" else None
    if made is None or made.opcode != "dynamic-update-slice":
        return None
    update = inner.instructions.get(made.operands[1])
    return update.bytes if update else None


def _operands(computation: Computation, one: Instruction) -> list[Shape]:
    found = [computation.instructions[name] for name in one.operands if name in computation.instructions]
    return [shape for operand in found for shape in operand.shapes]


def _in_hbm(shapes) -> int:
    return sum(shape.bytes for shape in shapes if shape.space == HBM)
