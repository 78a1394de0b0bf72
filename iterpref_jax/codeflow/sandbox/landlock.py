"""The tier for machines without user namespaces: every run confined by Landlock and a filter of system calls.

A program reads the interpreter, its packages and /usr, writes to a folder of its own, which is removed, and makes no
socket. It sees no other process, and from ABI 6 of Landlock on signals none. A parent that is root gives each run a uid
that owns nothing. All of a run's processes stay in one group, which is killed when it is over (`warden`).
"""

from __future__ import annotations

import io
import os
import platform
import tempfile
import threading
from typing import Any

from iterpref_jax.codeflow.sandbox import (
    child,
    harness,
    request,
    rlimit,
    ruling,
    seccomp,
    unprivileged,
    view,
    warden,
    zygote,
)
from iterpref_jax.codeflow.sandbox.child import Ended, Run
from iterpref_jax.codeflow.sandbox.interpreter import Interpreter
from iterpref_jax.codeflow.sandbox.verdict import Program, Verdict

NAME = "landlock"
GAPS = (
    "memory is limited per process, not for the group",
    "fills the disk with many files",
    "sees the names, sizes and times of files outside its folder",
    "finds out which process numbers are taken",
)
SIGNALS = "signals other processes of the user"
PROCESSES = 64


class LandlockTier:
    """Judges one program per call, from any thread; the module says how."""

    def __init__(self, *, wall_s: float, cpu_s: int, memory_mb: int, output_kb: int, python: Interpreter):
        self.gaps = GAPS if warden.abi() >= warden.SCOPES_ABI or os.getuid() == 0 else (*GAPS, SIGNALS)
        self._wall_s, self._cpu_s, self._output_bytes = wall_s, cpu_s, output_kb << 10
        self._limits = tuple(str(limit) for limit in (cpu_s, memory_mb << 20, view.FILE_BYTES))
        self._paths, self._readable = os.pathsep.join(python.packages), view.readable(python)
        self._command = [*python.command(warden), python.file_of(zygote), python.file_of(harness)]
        self._ids = unprivileged.ids()

    def __call__(self, program: Program, *, hash_seed: int, stop: threading.Event | None = None) -> Verdict:
        limits: dict[str, Any] = dict(wall_s=self._wall_s, output_bytes=self._output_bytes, stop=stop)
        # On top of what the user runs now, because the kernel counts all of it.
        processes = PROCESSES if os.getuid() == 0 else rlimit.tasks_of_user() + PROCESSES
        run = request.run_of(program, (*self._limits, str(processes)), self._paths, **limits)
        folder = os.path.realpath(tempfile.mkdtemp(prefix="iterpref-run-"))
        try:
            ended = self._run(run, hash_seed, folder)
        except OSError as error:
            return ruling.sandbox_error(f"the process did not start: {error}", tier=NAME, gaps=self.gaps)
        finally:
            rlimit.remove(folder)
        return ruling.verdict_of(child.unwrapped(ended), cpu_s=self._cpu_s, tier=NAME, gaps=self.gaps)

    def _run(self, run: Run, hash_seed: int, folder: str) -> Ended:
        ids = ""
        if os.getuid() == 0:
            uid, gid = next(self._ids)
            os.chown(folder, uid, gid)
            ids = f"{uid} {gid}"
        theirs, leash = os.pipe()
        with (
            io.FileIO(theirs) as theirs_end,
            io.FileIO(leash, "w") as ours,
            io.FileIO(seccomp.open_program(namespaces=False)) as filtered,
        ):
            fds = (filtered.fileno(), theirs_end.fileno())
            return child.run_child(
                [*self._command, *map(str, fds), ids, folder, *self._readable],
                run,
                env=rlimit.environment(folder, hash_seed),
                cwd=folder,
                pass_fds=fds,
                leash=ours,
            )


def missing(python: Interpreter) -> str:
    """Returns what the tier lacks on this machine, before anything is tried; "" if nothing."""
    if not seccomp.supported():
        return "the system calls of this processor are not known to the filter"
    if not warden.abi():
        return f"kernel {platform.release()} has no Landlock, or it was switched off when that started (lsm=)"
    if not hasattr(os, "pidfd_open"):
        return "this Python knows no pidfd_open"
    if os.getuid() == 0 and (closed := view.closed(python)):
        return f"the users who own nothing, to whom root gives programs, cannot read {closed}"
    return ""
