"""Limits of memory and of processes for a whole group (cgroup v1 or v2), and the certainty that none of it survives."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "iterpref-"
# A killed process leaves its group when its memory is given back.
_GONE_S = 10.0


class Group:
    """One run's group. Opened by `open_group`; `close` kills what is in it."""

    def __init__(self, folders: dict[str, Path], is_v2: bool):
        self._folders, self._is_v2 = folders, is_v2

    def joined(self, command: list[str]) -> list[str]:
        """Returns a command that enters the group before it becomes `command`."""
        files = [str(folder / "cgroup.procs") for folder in dict.fromkeys(self._folders.values())]
        enter = "".join(f"echo 0 > {file} && " for file in files)
        return ["/bin/sh", "-c", f'{enter}exec "$@"', "sh", *command]

    @contextlib.contextmanager
    def entrances(self) -> Iterator[list[int]]:
        """Gives descriptors by which a process that sees no cgroup enters this one: it writes a "0" to each."""
        with contextlib.ExitStack() as opened:
            files = [folder / "cgroup.procs" for folder in dict.fromkeys(self._folders.values())]
            yield [opened.enter_context(open(file, "wb", buffering=0)).fileno() for file in files]

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed a process of the group for its memory."""
        name = "memory.events" if self._is_v2 else "memory.oom_control"
        text = (self._folders["memory"] / name).read_text()
        return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in text.splitlines())

    def close(self) -> None:
        """Kills all processes of the group and removes it."""
        end = time.monotonic() + _GONE_S
        for folder in dict.fromkeys(self._folders.values()):
            while True:
                for pid in (folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                try:
                    folder.rmdir()
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.002)


def open_group(memory_bytes: int, processes: int) -> Group:
    """Makes a group with these limits.

    Raises:
        OSError: there are no cgroups here, or this user may not make one.
    """
    is_v2 = (_ROOT / "cgroup.controllers").exists()
    name = _PREFIX + secrets.token_hex(8)
    if is_v2:
        folder = _own_v2() / name
        return _limited(
            {"memory": folder, "pids": folder}, True, {"memory.max": memory_bytes, "memory.swap.max": 0}, processes
        )
    folders = {kind: _own_v1(kind) / name for kind in ("memory", "pids")}
    return _limited(folders, False, {"memory.limit_in_bytes": memory_bytes}, processes)


def _limited(folders: dict[str, Path], is_v2: bool, memory: dict[str, int], processes: int) -> Group:
    made: dict[str, Path] = {}
    try:
        for kind, folder in folders.items():
            folder.mkdir(exist_ok=folder in made.values())
            made[kind] = folder
        for name, value in memory.items():
            # A kernel without swap has no file for it.
            if name != "memory.swap.max" or (folders["memory"] / name).exists():
                (folders["memory"] / name).write_text(str(value))
        (folders["pids"] / "pids.max").write_text(str(processes))
    except OSError:
        for folder in dict.fromkeys(made.values()):
            folder.rmdir()
        raise
    return Group(folders, is_v2)


def _own_v2() -> Path:
    """The group of this process: where it may make others, if it is allowed to."""
    return _ROOT / _memberships().get("", "/").lstrip("/")


def _own_v1(kind: str) -> Path:
    return _ROOT / kind / _memberships().get(kind, "/").lstrip("/")


def _memberships() -> dict[str, str]:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    found = {}
    for line in lines:
        _, kinds, path = line.split(":", 2)
        found |= dict.fromkeys(kinds.split(","), path)
    return found
