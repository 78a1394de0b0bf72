"""Judges programs by their tests, in a process of their own.

Covered today (tier `rlimit`, the only one built): CPU, wall time, memory per process, output and file size are
limited; the environment is empty and the work folder temporary; the session and the descendants that left it are
killed; a pass is a stamped report of checks that were run, never an exit code or silence; replaced builtins are
`tampered`; tests that check nothing are `no_tests`, and, on request, tests that a stub passes are `vacuous`.

Not covered: anything a *hostile* program does on purpose. This tier leaves it the user's files, network and processes
(`Verdict.gaps` lists it), so it is refused without `allow_unsafe`. And in every tier, tests in the same process as
the program cannot be forge-proof: a program that walks the frames finds the token, a value that equals everything
passes every `==`. The tiers that isolate (`bwrap+cgroup`, `bwrap`, `landlock`) are named but not built yet.
"""

from iterpref_jax.codeflow.sandbox.tiers import BUILT, TIERS, Sandbox, SandboxSettings, open_sandbox
from iterpref_jax.codeflow.sandbox.verdict import FAILING, STATUSES, STYLES, Program, Verdict

__all__ = [
    "BUILT",
    "FAILING",
    "STATUSES",
    "STYLES",
    "TIERS",
    "Program",
    "Sandbox",
    "SandboxSettings",
    "Verdict",
    "open_sandbox",
]
