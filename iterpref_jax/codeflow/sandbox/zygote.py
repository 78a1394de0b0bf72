"""Forks the processes of programs from a warm interpreter, each into namespaces of its own.

It runs in a lane's bubblewrap, started by exec, with one thread. For every message on its control socket (ids, and the
descriptors of one run) it forks the first process of a new pid namespace. That one joins the run's cgroup, makes
new mount, IPC, network, UTS and cgroup namespaces with a new /tmp, /proc and so on in them, and forks the program's
process, which gives up its uid (in a lane of root's) or goes into a user namespace of its own, gives up every
capability, enters the filter of system calls and becomes the harness. The request comes on the run's own pipe: neither
a program nor a token is ever in this process's memory, and what a run leaves dies with its namespaces.

Standard library only; no import of ours: it stands alone in the sandbox.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import gc
import importlib.machinery
import importlib.util
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

READY, END = b"ready", b"end"
ROOT, USER = "root", "user"
# The descriptors of a run are its 0, 1, 2, its report and the entrances of its cgroups.
REPORT = 3
MOST_FDS = 8
# Of the zygote, below all that it receives: a run's own take these places.
CONTROL, OWN_PIDS = 3, 4
# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h, linux/sockios.h
NEW_USER, NEW_PIDS = 0x10000000, 0x20000000
NEW_OTHERS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x40000000  # mount, cgroup, UTS, IPC, network
READ_ONLY, REMOUNT, BIND = 1, 32, 4096
NO_SETUID, NO_DEVICES, NO_PROGRAMS = 2, 4, 8
DEATH_SIGNAL, DUMPABLE, SECCOMP, DROP_FROM_BOUNDS, NO_NEW_PRIVILEGES = 1, 4, 22, 24, 38
FILTER, CAPABILITIES_V3, CAPABILITIES = 2, 0x20080522, 64
SET_FLAGS, IS_UP = 0x8914, 1
KERNEL_FOLDERS = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus")
FAILED = 70

_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """What all runs of this lane have in common. `is_root`: of the machine, not of a user namespace."""

    is_root: bool
    sizes: dict[str, str]
    filter: bytes
    harness: Callable[[], None]


def main() -> None:
    control, filtered, harness, root, tmpfs, folders, preload = sys.argv[1:]
    with open(int(filtered), "rb") as file:
        program = file.read()
    talk = _take_places(int(control))
    sizes = dict(pair.split("=") for pair in tmpfs.split(","))
    room = Room(is_root=root == ROOT, sizes=sizes, filter=program, harness=load(harness).main)
    sys.argv[:] = [harness]
    _preload(preload.split(), folders.split(os.pathsep))
    talk.send(READY)
    while _serve_one(talk, room):
        pass


def _take_places(control: int) -> socket.socket:
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    copies = fcntl.fcntl(control, fcntl.F_DUPFD, 64), fcntl.fcntl(own, fcntl.F_DUPFD, 64)
    for copy, place in zip(copies, (CONTROL, OWN_PIDS), strict=True):
        os.dup2(copy, place, inheritable=False)
    os.closerange(OWN_PIDS + 1, 1 << 16)
    return socket.socket(fileno=CONTROL)


def load(path: str) -> Any:
    """Loads a module from its file, compiled or not, under no name by which a program could import it."""
    compiled = path.endswith(".pyc")
    kind = importlib.machinery.SourcelessFileLoader if compiled else importlib.machinery.SourceFileLoader
    loader = kind(path, path)
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(path, loader, origin=path))
    # Where dataclasses look.
    sys.modules[path] = module
    loader.exec_module(module)
    del sys.modules[path]
    return module


def _preload(names: Sequence[str], folders: Sequence[str]) -> None:
    """Imports modules, which leave neither a thread behind, nor the path on which they were found.

    Their objects are never looked at again by the collector, which would copy their pages in every run.
    """
    path = [*sys.path]
    sys.path.extend(folders)
    for name in names:
        importlib.import_module(name)
    sys.path[:] = path
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"{threads} threads run after the import of {', '.join(names)}: no fork is safe")
    gc.collect()
    gc.freeze()


def _serve_one(talk: socket.socket, room: Room) -> bool:
    """Forks one run and stays with it until it is over; False once nobody is there to ask for more."""
    message, fds, _, _ = socket.recv_fds(talk, 64, MOST_FDS)
    if not message:
        return False
    call("unshare", NEW_PIDS)
    first = os.fork()
    if not first:
        and_leave(_first_process, room, fds, [int(word) for word in message.split()])
    call("setns", OWN_PIDS, NEW_PIDS)
    for fd in fds:
        os.close(fd)
    alive = os.pidfd_open(first)
    ended = alive in select.select([CONTROL, alive], [], [])[0]
    os.close(alive)
    if not ended:
        os.kill(first, signal.SIGKILL)
    # The first process of a pid namespace is gone after all others of it.
    _, status, usage = os.wait4(first, 0)
    with contextlib.suppress(BrokenPipeError):
        talk.send(f"{os.waitstatus_to_exitcode(status)} {usage.ru_utime + usage.ru_stime}".encode())
    return talk.recv(64) == END


def and_leave(become: Callable[..., None], *words: Any) -> None:
    """A fork never comes back into the zygote's loop, whatever happens in it."""
    try:
        become(*words)
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        os._exit(FAILED)


def _first_process(room: Room, fds: Sequence[int], ids: Sequence[int]) -> None:
    """Makes the namespaces, forks the program's process, collects orphans and ends as the program's process does.

    As 1 it hears no signal from within. It cannot be written to by a program of the same uid: it is not dumpable.
    """
    prctl(DEATH_SIGNAL, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.dup2(fds[2], 2)
    for entrance in fds[4:]:
        os.write(entrance, b"0")
    os.setsid()
    call("unshare", NEW_OTHERS)
    _mount_all(room)
    _raise_loopback()
    prctl(DUMPABLE, 0)
    child = os.fork()
    if not child:
        and_leave(_program_process, room, fds, ids)
    os.closerange(0, 1 << 16)
    drop_capabilities()
    ended, status = 0, 0
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _mount_all(room: Room) -> None:
    safe = NO_SETUID | NO_DEVICES
    for folder, size in room.sizes.items():
        _mount("tmpfs", folder, safe, f"mode=1777,size={size}")
    _mount("proc", "/proc", safe | NO_PROGRAMS)
    _mount("devpts", "/dev/pts", NO_SETUID | NO_PROGRAMS, "newinstance,ptmxmode=0666,mode=620")
    if room.is_root:
        # What bubblewrap covers where root could write to it; no program keeps that uid, and this is one more wall.
        for folder in filter(os.path.exists, KERNEL_FOLDERS):
            call("mount", folder.encode(), folder.encode(), None, BIND, None)
            call("mount", None, folder.encode(), None, BIND | REMOUNT | READ_ONLY | safe | NO_PROGRAMS, None)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", IS_UP))


def _program_process(room: Room, fds: Sequence[int], ids: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, fd in enumerate(fds[: REPORT + 1]):
        os.dup2(fd, place)
    os.closerange(REPORT + 1, 1 << 16)
    (take_ids if room.is_root else _enter_user_namespace)(*ids)
    drop_capabilities()
    # Its own /proc/self would be closed to a process that gave up its uid.
    prctl(DUMPABLE, 1)
    prctl(NO_NEW_PRIVILEGES, 1)
    filter_calls(room.filter)
    os.chdir(os.environ["HOME"])
    _draw_new_seeds()
    room.harness()


def take_ids(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    _drop_bounds()
    os.setresuid(uid, uid, uid)


def _enter_user_namespace(uid: int, gid: int) -> None:
    """In a namespace of its own, a run's processes are counted apart; and no other can be made within."""
    mine = os.getuid(), os.getgid()
    prctl(DUMPABLE, 1)
    call("unshare", NEW_USER)
    for name, text in (("uid_map", f"{uid} {mine[0]} 1"), ("setgroups", "deny"), ("gid_map", f"{gid} {mine[1]} 1")):
        _write(f"/proc/self/{name}", text)
    _write("/proc/sys/user/max_user_namespaces", "0")
    _drop_bounds()


def _drop_bounds() -> None:
    for number in range(CAPABILITIES):
        if _libc.prctl(DROP_FROM_BOUNDS, ctypes.c_ulong(number), 0, 0, 0):
            return  # The kernel knows no more.


def drop_capabilities() -> None:
    call("capset", struct.pack("Ii", CAPABILITIES_V3, 0), bytes(24))


def filter_calls(program: bytes) -> None:
    lines = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog, with the padding before its pointer.
    text = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(lines))
    wanted = ctypes.create_string_buffer(text, len(text))
    prctl(SECCOMP, FILTER, ctypes.addressof(wanted))


def _draw_new_seeds() -> None:
    """Forks would all draw the same numbers; `random` takes care of itself."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _mount(kind: str, folder: str, flags: int, data: str = "") -> None:
    call("mount", kind.encode(), folder.encode(), kind.encode(), flags, data.encode())


def prctl(option: int, value: int, more: int = 0) -> None:
    call("prctl", option, value, more, 0, 0)


def call(name: str, *words: Any) -> None:
    """Calls a function of the C library; raises OSError where it fails."""
    given = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in words]
    if getattr(_libc, name)(*given):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{words!r}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    # Before 3.11 no option leaves it out.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    main()
