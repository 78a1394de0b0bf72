"""Whether a tier holds here: found out by trying to break it, never inferred from a version.

Each canary is a program that tries one thing and fails a check if it succeeds. They are told apart by name, so that a
tier that does not hold says why.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from iterpref_jax.codeflow.sandbox.verdict import Program, Verdict

# Tests that are empty but for the check of the canary's own answer.
_TESTS = "assert held(), 'reached'"


def _refused(action: str) -> str:
    return f"""
def held():
    try:
        {action}
    except OSError:
        return True
    return False
"""


def failures(run: Callable[[Program], Verdict]) -> Iterator[str]:
    """Yields what a tier does not stop, each with what was seen."""
    with _listening() as port, tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        for name, code in itertools.chain(_canaries(), _canaries_of(port, secret), _pair()):
            verdict = run(Program(code=code, tests=_TESTS, setup="", style="script"))
            if not verdict.passed:
                yield f"{name}: {verdict.status}, {verdict.message or verdict.error_type}"[:300]
        if secret.read_text() != "secret":
            yield "files outside: one was changed"


def _canaries() -> Iterator[tuple[str, str]]:
    yield "a program that does nothing passes", "def held():\n    return True\n"
    yield "system folders are read-only", _refused('open("/usr/iterpref", "w")')
    yield (
        "new namespaces are refused",
        ("import ctypes\n\ndef held():\n    return ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0\n"),
    )
    yield (
        "no capability is left",
        "def held():\n    lines = open('/proc/self/status').read().splitlines()\n"
        "    return all(int(x.split()[1], 16) == 0 for x in lines if x[:6] in ('CapPrm', 'CapEff', 'CapAmb'))\n",
    )
    yield (
        "processes of others are not seen",
        (
            "import os\n\ndef held():\n    try:\n        seen = os.listdir('/proc')\n    except OSError:\n"
            "        return True\n    return len([x for x in seen if x.isdigit()]) < 8\n"
        ),
    )
    yield (
        "processes are limited",
        (
            "import os, signal\n\ndef held():\n    children = []\n    try:\n        for _ in range(400):\n"
            "            pid = os.fork()\n            if not pid:\n                signal.pause()\n"
            "            children.append(pid)\n    except OSError:\n        return True\n    finally:\n"
            "        for pid in children:\n            os.kill(pid, 9)\n    return False\n"
        ),
    )
    yield (
        "files are limited",
        (
            "import os\n\ndef held():\n    block = bytes(1 << 20)\n    try:\n        for number in range(256):\n"
            "            with open(f'/tmp/{number}', 'wb') as file:\n                file.write(block)\n"
            "    except OSError:\n        return True\n    return False\n"
        ),
    )


def _canaries_of(port: int, secret: Path) -> Iterator[tuple[str, str]]:
    name = f"ITERPREF_{secrets.token_hex(4)}"
    os.environ[name] = "secret"
    yield "the environment is not passed on", f"import os\n\ndef held():\n    return {name!r} not in os.environ\n"
    del os.environ[name]
    connect = f"socket.create_connection(('127.0.0.1', {port}), 2)"
    yield "this machine's ports are not reached", "import socket\n" + _refused(connect)
    yield "files outside are not read", _refused(f"open({str(secret)!r})")
    yield "files outside are not written", _refused(f"open({str(secret)!r}, 'w')")


def _pair() -> Iterator[tuple[str, str]]:
    """The first leaves what it can: files, shared memory, a name, a process; the second looks for them."""
    name = secrets.token_hex(8)
    paths = [f"{folder}/{name}" for folder in ("/tmp", "/dev/shm", ".")]
    key = 1 + secrets.randbelow(1 << 30)
    leave = f"""
import contextlib, ctypes, os, socket, time

def held():
    for path in {paths}:
        with contextlib.suppress(OSError):
            open(path, "w").close()
    ctypes.CDLL(None).shmget({key}, 4096, 0o1666)
    if not os.fork():
        os.setsid()
        bound = socket.socket(socket.AF_UNIX)
        bound.bind("\\0{name}")
        bound.listen()
        time.sleep(60)
    time.sleep(0.05)
    return True
"""
    look = f"""
import ctypes, os, socket

def held():
    found = [path for path in {paths} if os.path.exists(path)]
    found += ["shared memory"] if ctypes.CDLL(None).shmget({key}, 4096, 0o600) >= 0 else []
    try:
        socket.socket(socket.AF_UNIX).connect("\\0{name}")
        found.append("a socket")
    except OSError:
        pass
    assert not found, found
    return True
"""
    yield "a program that leaves things behind passes", leave
    yield "what a program left does not reach the next", look


@contextlib.contextmanager
def _listening() -> Iterator[int]:
    """A port of this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
