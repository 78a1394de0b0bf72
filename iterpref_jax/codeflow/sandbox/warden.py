"""Confines a program without namespaces and without root: Landlock, a filter of system calls, one process group.

The parent starts this file by exec. It takes in the orphans of its descendants (a subreaper) and forks the program's
process, which gives up the uid of a parent that is root, may from then on read and write only what it is told, can make
no socket, reach no process outside, not leave its process group, and becomes the harness. When that process has ended,
or the leash is let go (also by a parent that died), the group is killed, and this process ends after the last of it.

Standard library only; no import of ours: `zygote.py`, from whose file it takes the system calls, is loaded by its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import select
import signal
import stat
import struct
import sys
from collections.abc import Sequence
from typing import Any

SUBREAPER, DEATH_SIGNAL, NO_NEW_PRIVILEGES, DUMPABLE = 36, 1, 38, 4
# linux/landlock.h; the numbers of the calls are those of every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_FOR_ABI, PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1, 2, 4, 8, 1 << 14
# All that is known of files, by the ABI that brought it.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: 1 << 15}
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
TO_READ, TO_USE = EXECUTE | READ_FILE | READ_DIR, READ_FILE | WRITE_FILE | TRUNCATE
# Binding and connecting TCP sockets (ABI 4); abstract sockets and signals to outside (ABI 6).
NET_RIGHTS, SCOPES = 3, 3
NET_ABI, SCOPES_ABI = 4, 6
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    zygote_file, harness, filtered, leash, ids, folder, *readable = sys.argv[1:]
    calls = _load(zygote_file)
    with open(int(filtered), "rb") as file:
        program = file.read()
    become = calls.load(harness).main
    sys.argv[:] = [harness]
    calls.prctl(SUBREAPER, 1)
    child = os.fork()
    if not child:
        os.close(int(leash))
        calls.and_leave(_program_process, calls, [int(word) for word in ids.split()], folder, readable, program, become)
    _watch(child, int(leash))


def _load(path: str) -> Any:
    compiled = path.endswith(".pyc")
    kind = importlib.machinery.SourcelessFileLoader if compiled else importlib.machinery.SourceFileLoader
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(path, kind(path, path)))
    sys.modules[path] = module
    kind(path, path).exec_module(module)
    return sys.modules.pop(path)


def _watch(child: int, leash: int) -> None:
    """Ends as the program does, after all that it left is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.closerange(0, leash)
    os.closerange(leash + 1, 1 << 16)
    select.select([leash, os.pidfd_open(child)], [], [])
    # The program's process, which made the group, is not collected yet: the number is still its own.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _program_process(
    calls: Any, ids: Sequence[int], folder: str, readable: Sequence[str], program: bytes, become: Any
) -> None:
    calls.prctl(DEATH_SIGNAL, signal.SIGKILL)
    os.setsid()
    if ids:
        calls.take_ids(*ids)
    calls.drop_capabilities()
    # Both are lost with a uid: the program's own /proc/self, and the death that follows its parent's.
    calls.prctl(DUMPABLE, 1)
    calls.prctl(DEATH_SIGNAL, signal.SIGKILL)
    calls.prctl(NO_NEW_PRIVILEGES, 1)
    restrict(folder, [*readable, f"/proc/{os.getpid()}"])
    calls.filter_calls(program)
    become()


def abi() -> int:
    """Returns the version of Landlock that this kernel has, 0 if none or if it was switched off when it started."""
    return max(_syscall(CREATE_RULESET, None, 0, ASK_FOR_ABI), 0)


def restrict(folder: str, readable: Sequence[str], version: int | None = None) -> None:
    """Leaves this process and its descendants `folder`, `readable` to be read, and the harmless devices.

    Raises OSError where the kernel refuses.
    """
    version = abi() if version is None else version
    handled, attributes = ruleset(version)
    rules = _checked(CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(rules, path, TO_READ & handled)
        for path in filter(os.path.exists, DEVICES):
            _allow(rules, path, TO_USE & handled)
        _allow(rules, folder, handled)
        _checked(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def ruleset(version: int) -> tuple[int, bytes]:
    """Returns the rights of files that an ABI knows, and its `struct landlock_ruleset_attr`, which handles all it can.

    >>> ruleset(1)
    (8191, b'\\xff\\x1f\\x00\\x00\\x00\\x00\\x00\\x00')
    """
    handled = sum(rights for since, rights in FILE_RIGHTS.items() if since <= version)
    words = [handled]
    words += [NET_RIGHTS] if version >= NET_ABI else []
    words += [SCOPES] if version >= SCOPES_ABI else []
    return handled, struct.pack(f"={len(words)}Q", *words)


def _allow(rules: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH)
    try:
        wanted = rights if stat.S_ISDIR(os.fstat(fd).st_mode) else rights & OF_FILES
        _checked(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", wanted, fd), 0)
    finally:
        os.close(fd)


def _checked(number: int, *words: Any) -> int:
    result = _syscall(number, *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock, call {number}: {os.strerror(error)}")
    return result


def _syscall(number: int, *words: Any) -> int:
    _libc.syscall.restype = ctypes.c_long
    return _libc.syscall(*(ctypes.c_long(word) if isinstance(word, int) else word for word in (number, *words)))


if __name__ == "__main__":
    # Before 3.11 no option leaves it out.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    main()
