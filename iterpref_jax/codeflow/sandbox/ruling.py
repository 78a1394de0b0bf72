"""From what a child said, and how it ended, to a verdict."""

from __future__ import annotations

import dataclasses
import signal

from iterpref_jax.codeflow.sandbox import cases
from iterpref_jax.codeflow.sandbox.child import START_S, Ended
from iterpref_jax.codeflow.sandbox.stdin_style import NO_PROCESS_LEFT, signal_name
from iterpref_jax.codeflow.sandbox.verdict import FAILING, CaseOutcome, Verdict

# status, error_type, message, last_frame, traceback, tests_run, tests_passed, memory_mb, lines_covered, lines_total
DONE_FIELDS = 10
# The other statuses are ours to say.
SAYABLE = FAILING | {"pass", "no_tests", "tampered"}
MISSING = "MissingPackage"


def verdict_of(ended: Ended, *, cpu_s: int, tier: str, gaps: tuple[str, ...]) -> Verdict:
    """Believes a stamped `done` event and nothing else: neither an exit code nor silence is a pass."""
    names = [event[0] for event in ended.events]
    if names[:1] == ["missing"]:
        message = f"{ended.events[0][-1]} is not there for the interpreter that runs the programs"
        return _cut(ended, "sandbox_error", MISSING, message, tier, gaps)
    if names[-1:] == [NO_PROCESS_LEFT]:
        message = f"no process could be started ({ended.events[-1][-1]}): the user has too many; lower sandbox.workers"
        return _cut(ended, "sandbox_error", "SandboxError", message, tier, gaps)
    try:
        outcomes = _outcomes(ended)
    except ValueError:
        return _cut(ended, "tampered", "Tampered", "a malformed report", tier, gaps)
    if ended.by == "done":
        return _said(ended, outcomes, tier, gaps)
    return dataclasses.replace(_not_said(ended, names, cpu_s, tier, gaps), cases=outcomes)


def _outcomes(ended: Ended) -> tuple[CaseOutcome, ...]:
    return cases.outcomes_of(ended.events[1 : -1 if ended.by == "done" else None])


def _not_said(ended: Ended, names: list[str], cpu_s: int, tier: str, gaps: tuple[str, ...]) -> Verdict:
    if ended.by == "stopped":
        return _cut(ended, "sandbox_error", "SandboxError", "stopped before its end", tier, gaps)
    if ended.by == "timeout" and not names:
        message = f"the harness did not start within {START_S:.0f} s: the machine has too much else to do"
        return _cut(ended, "sandbox_error", "SandboxError", message, tier, gaps)
    if ended.by == "timeout" or _cpu_spent(ended, cpu_s):
        return _cut(ended, "timeout", "Timeout", "stopped at its time limit", tier, gaps)
    if ended.by == "output":
        return _cut(ended, "output_limit", "OutputLimit", "printed too much", tier, gaps)
    if ended.by == "tampered":
        return _cut(ended, "tampered", "Tampered", "a report without the token of this run", tier, gaps)
    if "ready" not in names:
        message = f"the harness did not start (exit code {ended.returncode}): {ended.stderr_tail.strip()}"
        return _cut(ended, "sandbox_error", "SandboxError", message, tier, gaps)
    return _cut(ended, "early_exit", "EarlyExit", f"the process ended early: {_exit(ended)}", tier, gaps)


def out_of_memory(ended: Ended, *, cpu_s: int, tier: str, gaps: tuple[str, ...]) -> Verdict:
    """The kernel killed the program, which had used up the memory of its group."""
    verdict = verdict_of(ended, cpu_s=cpu_s, tier=tier, gaps=gaps)
    if verdict.status in ("tampered", "sandbox_error"):
        return verdict
    message = "its processes and files took more than its memory"
    killed = _cut(ended, "memory_limit", "MemoryLimit", message, tier, gaps)
    return dataclasses.replace(killed, cases=verdict.cases)


def sandbox_error(message: str, *, tier: str, gaps: tuple[str, ...]) -> Verdict:
    """Our own failure, which says nothing about the program."""
    ended = Ended(by="exit", events=(), stderr_tail="", returncode=0, seconds=0.0, cpu_seconds=0.0)
    return _cut(ended, "sandbox_error", "SandboxError", message, tier, gaps)


def _said(ended: Ended, outcomes: tuple[CaseOutcome, ...], tier: str, gaps: tuple[str, ...]) -> Verdict:
    _, *fields = ended.events[-1]
    if len(fields) != DONE_FIELDS or fields[0] not in SAYABLE or ended.events[0] != ("ready",):
        return _cut(ended, "tampered", "Tampered", "a malformed report", tier, gaps)
    status, error_type, message, last_frame, traceback, run, passed, memory, *lines = fields
    try:
        tests_passed, tests_run = _part(passed, run)
        covered, total = _part(*lines) if any(lines) else (None, None)
        memory_mb = cases.measured(memory)
    except ValueError:
        return _cut(ended, "tampered", "Tampered", "a malformed report", tier, gaps)
    return Verdict(
        status=status,
        error_type=error_type,
        message=cases.without_addresses(message),
        last_frame=last_frame,
        traceback=cases.without_addresses(traceback),
        tests_run=tests_run,
        tests_passed=tests_passed,
        seconds=ended.seconds,
        memory_mb=memory_mb,
        tier=tier,
        gaps=gaps,
        cases=outcomes,
        lines_covered=covered,
        lines_total=total,
    )


def _part(some: str, whole: str) -> tuple[int, int]:
    """Reads how many of how many; raises ValueError where some are more than all."""
    counts = int(some), int(whole)
    if not 0 <= counts[0] <= counts[1]:
        raise ValueError(f"not a part of a whole: {some[:100]!r} of {whole[:100]!r}")
    return counts


def _cut(ended: Ended, status: str, error_type: str, message: str, tier: str, gaps: tuple[str, ...]) -> Verdict:
    return Verdict(
        status=status,
        error_type=error_type,
        message=message,
        last_frame="",
        traceback=f"{error_type}: {message}",
        tests_run=0,
        tests_passed=0,
        seconds=ended.seconds,
        memory_mb=0.0,
        tier=tier,
        gaps=gaps,
    )


def _cpu_spent(ended: Ended, cpu_s: int) -> bool:
    # The hard limit kills with SIGKILL, which by itself could be the out-of-memory killer.
    spent = ended.returncode == -signal.SIGKILL and ended.cpu_seconds > cpu_s * 0.9
    return ended.by == "exit" and (spent or ended.returncode == -signal.SIGXCPU)


def _exit(ended: Ended) -> str:
    if ended.returncode < 0:
        return signal_name(-ended.returncode)
    return f"exit code {ended.returncode}"
