"""A compiled program's text, read: computations, instructions and shapes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
HBM, HOST = 0, 5

_SHAPE = re.compile(r"\b([a-z]+[0-9]+[a-z0-9]*|pred)\[([\d,<=?]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
# A reduction's `to_apply` is its combiner: nothing to count in there.
_CALLERS = ("call", "while", "conditional", "fusion", "async-start", "custom-call")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dims, and the memory space that it lies in (0 is a device's main memory)."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """The bytes of its elements, without a layout's padding."""
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 4 if self.dtype.startswith("f4") else 0)
        return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction: the arrays that it makes (a tuple's in order), its operands' names and its attributes' text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """The computations that it runs, by role."""
        found: dict[str, list[str]] = {}
        for role, name in _CALLED.findall(self.attributes) if self.opcode in _CALLERS else ():
            found.setdefault("branch" if role.endswith("_computation") else role, []).append(name)
        for names in _BRANCHES.findall(self.attributes) if self.opcode in _CALLERS else ():
            found.setdefault("branch", []).extend(re.findall(r"[\w.\-]+", names))
        return found

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.is_root)

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """The parameters in their order."""
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.literal))

    def users(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions.values() if name in one.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a compiled module."""

    computations: dict[str, Computation]
    entry: str


def read(text: str) -> Program:
    """Reads the text of `Compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = Computation(head[2], {})
            computations[head[2]] = current
            entry = head[2] if head[1] else entry
        elif current is not None:
            one = _instruction(line)
            if one:
                current.instructions[one.name] = one
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if not start:
        return None
    kind, after = _type(line, start.end())
    opcode = _OPCODE.match(line, after)
    if not opcode:
        return None
    end = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : end]
    return Instruction(
        name=start[2],
        opcode=opcode[1],
        shapes=tuple(shapes(kind)),
        operands=_operands(inside),
        literal=inside.strip(),
        attributes=line[end + 1 :],
        is_root=bool(start[1]),
    )


def shapes(text: str) -> Iterator[Shape]:
    """Yields every array in the text of a type."""
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype in BITS or dtype.startswith(("f8", "f4")):
            space = _SPACE.search(layout)
            sizes = tuple(int(re.sub(r"\D", "", size)) for size in dims.split(",") if size)
            yield Shape(dtype, sizes, int(space[1]) if space else HBM)


def _type(line: str, start: int) -> tuple[str, int]:
    """Returns the text of the type that begins at `start`, and where it ends."""
    end = _closing(line, start) + 1 if line[start] == "(" else line.find(" ", start)
    return line[start:end], end


def _closing(line: str, start: int) -> int:
    """Returns the place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] == "(") - (line[place] == ")")
        if depth == 0:
            return place
    return len(line)


def _operands(text: str) -> tuple[str, ...]:
    if "%" in text:
        return tuple(re.findall(r"%([\w.\-]+)", text))
    return tuple(re.findall(r"[A-Za-z_][\w.\-]*(?=\s*(?:,|$))", text))
