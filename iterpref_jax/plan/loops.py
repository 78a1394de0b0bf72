"""How often the loops of a compiled program run: from what the compiler notes, or from counter, step and bound."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

from iterpref_jax.plan.hlo import Computation, Instruction, Program

_NOTED = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"index=(\d+)")
_RENAMES = ("copy", "bitcast", "convert")


@dataclasses.dataclass(frozen=True)
class Place:
    """An instruction and the computation that it stands in."""

    computation: Computation
    one: Instruction

    def at(self, name: str) -> Place:
        return Place(self.computation, self.computation.instructions[name])


@dataclasses.dataclass(frozen=True)
class Loops:
    """The loops of a program."""

    program: Program

    @functools.cached_property
    def _callers(self) -> dict[str, Place]:
        """The loop that runs each body or condition."""
        return {
            name: Place(computation, one)
            for computation in self.program.computations.values()
            for one in computation.instructions.values()
            if one.opcode == "while"
            for role in ("body", "condition")
            for name in one.called[role]
        }

    def trips(self, loop: Place) -> int | None:
        """Returns how often the body runs, or None where only the running program knows."""
        noted = _NOTED.search(loop.one.attributes)
        if noted:
            return int(noted[1])
        condition = self.program.computations[loop.one.called["condition"][0]]
        bound = Place(condition, condition.root)
        if bound.one.opcode != "compare" or "direction=LT" not in bound.one.attributes:
            return None
        counter, limit = (bound.at(name) for name in bound.one.operands)
        number, stop = self._element(counter), self.constant(limit)
        if number is None or stop is None:
            return None
        start = self.constant(self._made(loop.at(loop.one.operands[0]), number))
        step = self._step(loop, number)
        return None if start is None or not step else max(0, -(-(stop - start) // step))

    def runs(self, microbatches: float, tiles: float, *, looped: bool) -> dict[str, float]:
        """Returns how often every computation runs in one step.

        The loop whose length no compiler knows is that of the microbatches; those inside it (or all, where the program
        is of one microbatch and has no such loop, not `looped`) walk tiles of targets. The branches of a switch are
        taken to run equally often.
        """
        found = dict.fromkeys(self.program.computations, 0.0)

        def visit(name: str, count: float, is_inside: bool) -> None:
            found[name] += count
            computation = self.program.computations[name]
            for one in computation.instructions.values():
                trips = self.trips(Place(computation, one)) if one.opcode == "while" else 1
                times = trips if trips is not None else tiles if is_inside else microbatches
                for inner, share in _called(one):
                    if inner in self.program.computations:
                        visit(inner, count * times * share, is_inside or trips is None)

        visit(self.program.entry, 1.0, not looped)
        return found

    def carried(self, loop: Place) -> list[tuple[int, bool]]:
        """Returns the number of every array that a loop carries, and whether its body leaves it as it is."""
        body = self.program.computations[loop.one.called["body"][0]]
        root = Place(body, body.root)
        if root.one.opcode != "tuple":
            return []
        return [(number, self._element(root.at(name)) == number) for number, name in enumerate(root.one.operands)]

    def constant(self, place: Place | None) -> int | None:
        """Returns the value of an integer that does not change while the program runs, or None."""
        if place is None:
            return None
        place = _renamed(place)
        if place.one.opcode == "constant":
            return int(place.one.literal) if re.fullmatch(r"-?\d+", place.one.literal) else None
        number = self._element(place)
        loop = self._callers.get(place.computation.name)
        if number is None or loop is None or (number, True) not in self.carried(loop):
            return None
        return self.constant(self._made(loop.at(loop.one.operands[0]), number))

    def _element(self, place: Place) -> int | None:
        """Returns which element of its computation's only parameter this is, or None."""
        place = _renamed(place)
        if place.one.opcode != "get-tuple-element":
            return None
        source = place.computation.instructions.get(place.one.operands[0])
        index = _INDEX.search(place.one.attributes)
        return int(index[1]) if index and source and source.opcode == "parameter" else None

    def _made(self, place: Place, number: int) -> Place | None:
        """Returns what makes one element of a tuple."""
        place = _renamed(place)
        return place.at(place.one.operands[number]) if place.one.opcode == "tuple" else None

    def _step(self, loop: Place, number: int) -> int | None:
        body = self.program.computations[loop.one.called["body"][0]]
        new = self._made(Place(body, body.root), number)
        new = _renamed(new) if new else None
        if new is None or new.one.opcode != "add":
            return None
        operands = [new.at(name) for name in new.one.operands]
        steps = [self.constant(operand) for operand in operands if self._element(operand) != number]
        return steps[0] if len(steps) == 1 else None


def _renamed(place: Place) -> Place:
    """Returns what is behind copies and conversions."""
    while place.one.opcode in _RENAMES:
        place = place.at(place.one.operands[0])
    return place


def _called(one: Instruction) -> Iterator[tuple[str, float]]:
    for role, names in one.called.items():
        for name in names:
            yield name, 1 / len(names) if role == "branch" else 1.0
