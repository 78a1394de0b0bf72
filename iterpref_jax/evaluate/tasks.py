"""What a benchmark asks and how an answer is judged; no benchmark's file format is known here."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptTests:
    """`setup`, the program and `tests` run one after the other as one script."""

    setup: str
    tests: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitTests:
    """A file with `unittest` cases that sees every name of the program."""

    tests: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallTests:
    """Calls of `entry_point` with each of `inputs` (tuples of arguments), compared with those of `reference`.

    `atol` is an absolute tolerance; 0 compares exactly unless the wanted value is made of floats. `oracle` names what
    replaces the comparison ("" for none; `oracles.py` has the table).
    """

    entry_point: str
    reference: str
    inputs: tuple[tuple[Any, ...], ...]
    atol: float
    oracle: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StdinTests:
    """A whole program, behind `setup`, that reads each text of `cases` and prints the other; `case_s` seconds each."""

    setup: str
    cases: tuple[tuple[str, str], ...]
    case_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodTests:
    """Calls of `Solution().method`, or of a function, with JSON arguments (one a line) and a JSON result."""

    setup: str
    entry_point: str
    cases: tuple[tuple[str, str], ...]
    case_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTests:
    """Tests as a trajectory holds them: `tests` are what `style` says ("script", "unittest", "pytest", "stdin")."""

    style: str
    setup: str
    tests: str


Tests = ScriptTests | UnitTests | CallTests | StdinTests | MethodTests | StoredTests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Tests with the name that their score gets, such as base or plus."""

    name: str
    tests: Tests


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a model may be shown: the code to continue, the request in words, and the messages of a fixed template.

    An empty one does not exist for this task, which a prompt style that needs it refuses.
    """

    code: str = ""
    request: str = ""
    fenced: bool = True
    messages: tuple[tuple[str, str], ...] = ()
    shots: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One problem: `canonical` is a whole program that solves it ("" if none is published).

    A program counts as passing with all `suites`, in their order; the score of a suite needs those before it as well.
    """

    task_id: str
    prompts: Prompts
    entry_point: str
    canonical: str
    suites: tuple[Suite, ...]
    prefix: str = ""  # what stands in front of a cleaned answer: BigCodeBench's calibration
    tags: tuple[str, ...] = ()  # what scores are also split by, such as a difficulty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program of a benchmark may use; 0 leaves it to the sandbox's settings."""

    wall_s: float = 0.0
    cpu_s: int = 0
    memory_mb: int = 0
    output_kb: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Tasks of one file. `clean` names how an answer becomes a program (`cleaning.py` has the table)."""

    name: str
    version: str
    source: str
    sha256: str
    tasks: tuple[Task, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    clean: str
    limits: Limits
    exceptions: dict[str, str] = dataclasses.field(default_factory=dict)  # canonical solutions that fail, with why
