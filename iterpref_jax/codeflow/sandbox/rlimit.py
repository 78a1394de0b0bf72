"""The weakest tier: resource limits, a session of its own and an empty environment, in a folder that is removed.

It stops programs that are wrong, not programs that are hostile: the file system, the network and the other processes
of the user are open to them. It exists for code that is trusted (mutations of one's own) where nothing better runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from typing import Any

from iterpref_jax.codeflow.sandbox import child, harness, request, ruling
from iterpref_jax.codeflow.sandbox.interpreter import Interpreter
from iterpref_jax.codeflow.sandbox.verdict import Program, Verdict

TIER = "rlimit"
GAPS = (
    "unsafe",
    "reads and writes files outside its folder",
    "fills the disk with many files",
    "reaches the network",
    "signals and reads other processes of the user, this one included",
    "memory is limited per process, not for the group",
    "a user with uid 0 has no process limit and can raise the others",
    "a descendant that hides its environment survives",
    "a program that sleeps outlives a killed parent",
)
FILE_BYTES = 64 << 20
# On top of what the user runs when a program starts, because RLIMIT_NPROC counts all of it.
OWN_PROCESSES = 256


class RlimitTier:
    """Judges one program per call, from any thread; the module says what it does not stop."""

    def __init__(self, *, wall_s: float, cpu_s: int, memory_mb: int, output_kb: int, python: Interpreter):
        self._wall_s, self._cpu_s, self._output_bytes = wall_s, cpu_s, output_kb << 10
        self._limits = tuple(str(limit) for limit in (cpu_s, memory_mb << 20, FILE_BYTES))
        # `-S` leaves these out; tests may need numpy.
        self._paths, self._command = os.pathsep.join(python.packages), python.command(harness)

    def __call__(self, program: Program, *, hash_seed: int, stop: threading.Event | None = None) -> Verdict:
        limits: dict[str, Any] = dict(wall_s=self._wall_s, output_bytes=self._output_bytes, stop=stop)
        tasks = tasks_of_user()
        processes = tasks + OWN_PROCESSES if tasks else 0
        run = request.run_of(program, (*self._limits, str(processes)), self._paths, **limits)
        folder = tempfile.mkdtemp(prefix="iterpref-run-")
        try:
            ended = child.run_child(self._command, run, env=environment(folder, hash_seed), cwd=folder)
        except OSError as error:
            return ruling.sandbox_error(f"the process did not start: {error}", tier=TIER, gaps=GAPS)
        finally:
            remove(folder)
        return ruling.verdict_of(ended, cpu_s=self._cpu_s, tier=TIER, gaps=GAPS)


def environment(folder: str, hash_seed: int) -> dict[str, str]:
    """The whole environment of a program; nothing of the parent's is passed on."""
    return {
        "HOME": folder,
        "TMPDIR": folder,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": str(hash_seed),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def remove(folder: str) -> None:
    """Removes a work folder with what a program left in it."""
    try:
        os.rmdir(folder)
    except OSError:
        # A program may take its own rights away from a folder that it made.
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
        shutil.rmtree(folder, ignore_errors=True)


def tasks_of_user() -> int:
    """Threads of this user's processes; 0 where there is no /proc."""
    if not os.path.isdir("/proc/self/task"):
        return 0
    tasks = 0
    for name in os.listdir("/proc"):
        # A process may end between the listing and the look.
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                tasks += len(os.listdir(f"/proc/{name}/task"))
    return tasks
