"""What a program sees of the machine: the interpreter, its packages and /usr, read-only; small folders of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath

from iterpref_jax.codeflow.sandbox.interpreter import Interpreter

FOLDER = "/program"
FILE_BYTES = 64 << 20
HOSTS = os.path.join(os.path.dirname(__file__), "hosts")
# Where a program may write, and how much.
TMPFS = {"/tmp": FILE_BYTES, FOLDER: FILE_BYTES, "/dev/shm": 16 << 20}


def mounts(python: Interpreter, files: Mapping[str, str]) -> list[str]:
    """Returns bubblewrap's arguments for all of it; `files` (path here: path there) are to be read as well."""
    # First, because an interpreter or its packages may lie below one of them.
    command = [*_tmpfs("/tmp"), *_tmpfs(FOLDER)]
    for path in readable(python):
        for above in reversed(PurePosixPath(path).parents[:-1]):
            command += ["--perms", "0755", "--dir", str(above)]
        command += ["--ro-bind", path, path]
    for path, target in _links():
        command += ["--symlink", target, path]
    # A server and its client in one program find each other; the machine's own file is none of its business.
    for here, there in {**files, HOSTS: "/etc/hosts"}.items():
        command += ["--ro-bind", here, there]
    command += ["--proc", "/proc", "--dev", "/dev", *_tmpfs("/dev/shm"), "--remount-ro", "/dev"]
    return [*command, "--remount-ro", "/", "--chdir", FOLDER]


def _tmpfs(folder: str) -> list[str]:
    return ["--size", str(TMPFS[folder]), "--perms", "1777", "--tmpfs", folder]


def hidden(python: Interpreter) -> str:
    """Returns what a program could not read any more if TMPFS were made anew, "" if nothing."""
    return next((path for path in readable(python) for folder in TMPFS if _within(path, folder)), "")


def readable(python: Interpreter) -> list[str]:
    """Returns the folders and files that a program may read, none within another one."""
    wanted = {python.base, "/usr", *python.packages}
    wanted |= {path for path in ("/lib", "/lib64", "/bin", "/etc/alternatives", "/etc/ld.so.cache") if _is_real(path)}
    return sorted(path for path in wanted if not any(path != other and _within(path, other) for other in wanted))


def closed(python: Interpreter) -> str:
    """Returns what a user who owns nothing cannot reach of what a program must read, "" if nothing."""
    folders = [path for wanted in readable(python) for path in (wanted, *map(str, PurePosixPath(wanted).parents))]
    return next((path for path in folders if not os.stat(path).st_mode & 1 and os.path.isdir(path)), "")


def _links() -> list[tuple[str, str]]:
    return [(path, os.readlink(path)) for path in ("/lib", "/lib64", "/bin", "/sbin") if os.path.islink(path)]


def _is_real(path: str) -> bool:
    return os.path.exists(path) and not os.path.islink(path)


def _within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")
