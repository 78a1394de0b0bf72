"""The tier landlock: what is asked of the kernel, and what a program may do in it. Canaries: isolation_test."""

import os
import platform
import struct

import pytest

from iterpref_jax.codeflow.sandbox import Program, interpreter, landlock, seccomp, tiers, warden

LIMITS = dict(wall_s=5.0, cpu_s=3, memory_mb=512, output_kb=256, python=interpreter.own())


@pytest.fixture(scope="module")
def tier():
    if why := tiers.why_not("landlock"):
        pytest.skip(f"landlock does not hold on this machine: {why}")
    return tiers.make_tier("landlock", **LIMITS)


def judged(tier, code, check="held()"):
    return tier(Program(code=code, tests=f"assert {check}\n", setup="", style="script"), hash_seed=0)


@pytest.mark.parametrize(
    ("abi", "rights", "words"), [(1, 13, 1), (2, 14, 1), (3, 15, 1), (4, 15, 2), (5, 16, 2), (6, 16, 3), (7, 16, 3)]
)
def test_a_ruleset_handles_all_that_the_kernel_knows_and_no_more(abi, rights, words):
    handled, attributes = warden.ruleset(abi)
    assert handled == (1 << rights) - 1
    assert struct.unpack(f"={words}Q", attributes) == (handled, 3, 3)[:words]


def test_a_kernel_without_landlock_is_named(monkeypatch):
    monkeypatch.setattr(warden, "abi", lambda: 0)
    assert landlock.missing(interpreter.own()) == (
        f"kernel {platform.release()} has no Landlock, or it was switched off when that started (lsm=)"
    )


def test_signals_are_a_gap_below_abi_6_for_a_user_who_is_not_root(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    for abi, is_gap in ((5, True), (6, False)):
        monkeypatch.setattr(warden, "abi", lambda abi=abi: abi)
        assert (landlock.SIGNALS in landlock.LandlockTier(**LIMITS).gaps) is is_gap


@pytest.mark.skipif(not seccomp.supported(), reason="the filter knows x86-64 and arm64 only")
def test_the_filter_without_namespaces_is_the_other_one_and_more():
    alone, more = seccomp.program(), seccomp.program(namespaces=False)
    assert len(more) > len(alone)
    assert more.startswith(alone[:64])
    lines = [struct.unpack_from("=HBBI", more, place) for place in range(0, len(more), 8)]
    for place, (code, if_true, if_false, _) in enumerate(lines):
        assert code == 0x06 or place + 1 + max(if_true, if_false) < len(lines)


@pytest.mark.parametrize(
    "action",
    [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "os.chmod('.', 0o777)",
        "os.listdir('/proc')",
        "open('/etc/passwd')",
        "open('/proc/1/environ')",
        "os.listdir('..')",
        "os.mkdir('../beside')",
        "os.kill(1, 9)",
        "os.setpriority(os.PRIO_PROCESS, 0, 5)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "open('/usr/iterpref', 'w')",
    ],
)
def test_what_a_program_may_not_do_is_refused(tier, action):
    code = (
        f"import os, resource, socket\n\ndef held():\n    try:\n        {action}\n    except OSError:\n"
        "        return True\n    return False\n"
    )
    assert judged(tier, code).passed


@pytest.mark.parametrize(
    "action",
    [
        "open('x', 'w').write('x'); os.rename('x', 'y'); os.mkdir('z'); os.rename('y', 'z/y'); os.truncate",
        "subprocess.run(['/bin/sh', '-c', 'echo ok > out'], check=True, start_new_session=True)",
        "socket.socketpair()",
        "asyncio.run(asyncio.sleep(0.01))",
        "open('/dev/null', 'w').write('x'); open('/dev/urandom', 'rb').read(1)",
        "tempfile.TemporaryFile().write(b'x')",
        "__import__('json.tool')",
        "open('/proc/self/status').read()",
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
        "threading.Thread(target=print).start()",
    ],
)
def test_what_a_program_needs_works(tier, action):
    code = (
        "import asyncio, os, resource, socket, subprocess, tempfile, threading\n\ndef held():\n"
        f"    {action}\n    return True\n"
    )
    verdict = judged(tier, code)
    assert verdict.passed, verdict


def test_a_process_that_would_leave_the_session_ends_with_the_run(tier, tmp_path):
    mark = f"iterpref-survivor-{os.getpid()}"
    code = (
        "import os, subprocess\n\ndef held():\n    if not os.fork():\n        os.setsid()\n        if not os.fork():\n"
        f"            os.execv('/bin/sh', ['{mark}', '-c', 'sleep 60; true'])\n        os._exit(0)\n"
        "    os.wait()\n    return True\n"
    )
    verdict = judged(tier, code)
    assert verdict.passed, verdict
    assert mark not in "".join(command_of(pid) for pid in filter(str.isdigit, os.listdir("/proc")))


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def test_the_work_folder_is_removed(tier):
    code = "import os\n\ndef held():\n    os.makedirs('a/b')\n    return True\n"
    assert judged(tier, code).passed
    folder = judged(tier, "import os\n\ndef held():\n    return True\n", "False, __import__('os').getcwd()").message
    assert folder
    assert not os.path.exists(folder)
