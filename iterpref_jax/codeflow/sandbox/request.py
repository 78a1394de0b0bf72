"""What a program is sent with: the parts of the harness that its style needs, and the inputs of its cases."""

from __future__ import annotations

import functools
import importlib.util
import math
import threading
from collections.abc import Sequence
from pathlib import Path

from iterpref_jax.codeflow.sandbox.child import Run
from iterpref_jax.codeflow.sandbox.verdict import CASE_STYLES, STYLES, Program
from iterpref_jax.errors import UserError, did_you_mean

# Modules of this package that run inside, besides the harness itself.
_PARTS = {
    "script": ("script_style",),
    "unittest": ("unittest_style",),
    "pytest": ("unittest_style", "pytest_style"),
    "io": ("typed", "io_style"),
    "stdin": ("stdin_style",),
}
_COVERAGE = "line_coverage"
# The process that watches a case of "stdin" ends it; we do when that does not.
_LATE_S = 2.0


def check(program: Program) -> None:
    """Raises UserError for a program that its style cannot run."""
    style = program.style
    if style not in STYLES:
        raise UserError(
            f"program style {style!r} is not built; known: {', '.join(STYLES)}" + did_you_mean(style, STYLES)
        )
    wanted = []
    if style not in CASE_STYLES:
        wanted += [f"no {name}" for name in ("cases", "entry_point", "compare") if getattr(program, name)]
    else:
        wanted += [] if program.cases else ["cases"]
        wanted += [f"no {name}" for name in ("tests", "coverage") if getattr(program, name)]
        wanted += ["entry_point"] if style == "io" and not program.entry_point else []
        wanted += ["no entry_point"] if style == "stdin" and program.entry_point else []
    if wanted:
        raise UserError(f"a program of style {style!r} has {', '.join(wanted)}; see codeflow.sandbox.Program")


def run_of(
    program: Program,
    limits: Sequence[str],
    paths: str,
    *,
    wall_s: float,
    output_bytes: int,
    stop: threading.Event | None,
) -> Run:
    """Returns the run of `program` in a tier: cpu_s, memory, file_bytes and processes, and the packages' folders.

    Raises UserError for an input that has no form in JSON (`typed`).
    """
    return Run(
        request=[program.style, *limits, paths, *_fields(program, output_bytes=output_bytes)],
        wall_s=wall_s,
        output_bytes=output_bytes,
        case_limits=_case_limits(program),
        stop=stop,
    )


def _fields(program: Program, *, output_bytes: int) -> list[str]:
    """Returns what follows the limits in the request for `program`, as `harness.main` reads it.

    Raises UserError for an input that has no form in JSON (`typed`).
    """
    names = [*_PARTS[program.style], *([_COVERAGE] if program.coverage else [])]
    parts = [text for name in names for text in (name, _source(name))]
    return [program.setup, program.code, program.tests, str(len(names)), *parts, *_cases(program, output_bytes)]


def _case_limits(program: Program) -> tuple[float, ...]:
    """Returns the seconds after which the parent ends the run in each case, counted from the end of the one before."""
    late = _LATE_S if program.style == "stdin" else 0.0
    return tuple(math.inf if case.wall_s is None else case.wall_s + late for case in program.cases)


def _cases(program: Program, output_bytes: int) -> list[str]:
    if program.style == "io":
        return [str(output_bytes), program.entry_point, *(case.inputs_json for case in program.cases)]
    if program.style != "stdin":
        return []
    texts = [text for case in program.cases for text in (str(case.wall_s or math.inf), case.inputs)]
    return [str(output_bytes), *texts]


@functools.cache
def _source(name: str) -> str:
    spec = importlib.util.find_spec(f"iterpref_jax.codeflow.sandbox.{name}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
