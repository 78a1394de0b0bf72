"""What a step's peak of memory is made of.

Parameters, optimizer and batch are their shards' bytes. Gradients are those that are there at once, by the shapes of
what is trained. Activations are what the forward pass leaves for the backward pass: the arrays that its loops over
layers fill, one slice each round, in the compiled program. The rest of the compiler's peak are temporaries.
"""

from __future__ import annotations

import dataclasses

from iterpref_jax.plan.hlo import HBM, Instruction, Program, Shape
from iterpref_jax.plan.loops import Loops, Place
from iterpref_jax.train.compiled import DeviceMemory

BACKWARD = "transpose("
PEELED = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device: the parts of the peak, and what of the state lies in the host's memory instead."""

    params: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    temporaries: int
    peak: int
    host: int


def split(memory: DeviceMemory, gradients: int, saved: int) -> Memory:
    """Returns the parts of the peak.

    Gradients and activations need not be there at one time: where both do not fit under the peak, activations give way.
    """
    rest = memory.temporaries
    gradients = min(gradients, rest)
    activations = min(saved, rest - gradients)
    return Memory(
        params=memory.params,
        optimizer=memory.opt_state,
        batch=memory.batch,
        gradients=gradients,
        activations=activations,
        temporaries=rest - gradients - activations,
        peak=memory.peak,
        host=memory.host,
    )


def saved_bytes(program: Program, runs: dict[str, float]) -> int:
    """Returns the bytes that the forward pass's loops fill slice by slice, in a device's own memory."""
    loops, total = Loops(program), 0
    for name, computation in program.computations.items():
        for one in computation.instructions.values() if runs[name] else ():
            if one.opcode == "while" and not _is_backward(program, one):
                total += _filled(loops, Place(computation, one))
    return total


def _is_backward(program: Program, loop: Instruction) -> bool:
    """Whether a loop is one of the backward pass; where the compiler has rewritten it, only its body still says so."""
    if loop.op_name:
        return BACKWARD in loop.op_name
    return any(BACKWARD in one.op_name for one in program.computations[loop.called["body"][0]].instructions.values())


def _filled(loops: Loops, loop: Place) -> int:
    rounds, shapes = loops.trips(loop), loop.one.shapes
    if rounds is None or rounds < 2:
        return 0
    changed = [shapes[number] for number, is_kept in loops.carried(loop) if not is_kept and number < len(shapes)]
    return sum(shape.bytes for shape in changed if _is_stack(shape, rounds))


def _is_stack(shape: Shape, rounds: int) -> bool:
    # Where exchanges are pipelined, the first or last layers stand outside the loop.
    return shape.space == HBM and len(shape.dims) > 1 and rounds <= shape.dims[0] <= rounds + PEELED
