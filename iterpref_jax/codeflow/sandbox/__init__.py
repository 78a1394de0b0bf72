"""Judges programs by their tests, in a process of their own.

Covered in every tier: CPU, wall time, memory per process, output and file size are limited; the environment is empty
and the work folder temporary; the session and the descendants that left it are killed; a pass is a stamped report of
checks that were run, never an exit code or silence; replaced builtins, and values that equal everything, are
`tampered`; tests that check nothing are `no_tests`, and, on request, tests that a stub passes are `vacuous`.

The tiers `bwrap` and `bwrap+cgroup` isolate: no file, process, variable or network of the user's is reached, new
namespaces and what attacks on kernels begin with are refused, the whole process tree dies with the run, and with a
cgroup memory is limited for the group. `landlock`, for machines without user namespaces, keeps files, network and
processes apart by other means. Whether a tier holds is tried on the machine before it is used (`probe`).

Programs with cases (styles "io" and "stdin") are sent inputs alone and answer with outputs, which are compared out
here: there is nothing to forge. Tests in the program's own process ("script", "unittest", "pytest") deserve less trust.

Not covered: `rlimit` leaves a *hostile* program the user's files, network and processes (`Verdict.gaps` lists what a
tier does not stop), so it is refused without `allow_unsafe`. In every tier, tests in the same process as the program
cannot be forge-proof: a program that walks the frames finds the token. No tier stops a fault of the kernel itself.
"""

from iterpref_jax.codeflow.sandbox.comparators import COMPARATORS, Comparator
from iterpref_jax.codeflow.sandbox.tiers import TIERS, Sandbox, SandboxSettings, open_sandbox
from iterpref_jax.codeflow.sandbox.verdict import (
    FAILING,
    STATUSES,
    STYLES,
    UNKNOWN,
    Case,
    CaseOutcome,
    Finding,
    Program,
    Verdict,
)

__all__ = [
    "COMPARATORS",
    "FAILING",
    "STATUSES",
    "STYLES",
    "TIERS",
    "UNKNOWN",
    "Case",
    "CaseOutcome",
    "Comparator",
    "Finding",
    "Program",
    "Sandbox",
    "SandboxSettings",
    "Verdict",
    "open_sandbox",
]
