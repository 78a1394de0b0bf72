"""Warm interpreters: verdicts are those of a new one, nothing of a run stays, and a broken lane is replaced."""

import contextlib
import dataclasses
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from iterpref_jax.codeflow.sandbox import Program, bwrap, interpreter, open_sandbox, tiers
from iterpref_jax.errors import UserError
from tests.support.sandboxes import sandbox_settings

SETTINGS = sandbox_settings(tier="bwrap", allow_unsafe=False, workers=1, warm=True)
LIMITS = {name: getattr(SETTINGS, name) for name in tiers.PROBE_LIMITS} | {"python": interpreter.own()}
ADD = "def add(a, b):\n    return a + b\n"
UNITTEST = (
    "import unittest\nfrom solution import add\nclass T(unittest.TestCase):\n"
    "    def test_a(self): self.assertEqual(add(1, 2), 3)\n    def test_b(self): self.assertEqual(add(1, 2), 4)\n"
)


@pytest.fixture(scope="module", autouse=True)
def _warm_holds():
    if why := tiers.why_not("bwrap") or tiers.why_cold("bwrap"):
        pytest.skip(f"warm interpreters do not isolate on this machine: {why}")


@pytest.fixture(scope="module")
def lanes():
    with bwrap.open_lanes((), interpreter.own()) as opened:
        yield opened


@pytest.fixture(scope="module")
def warm(lanes):
    return bwrap.BwrapTier(**LIMITS, grouped=False, lanes=lanes)


def program(code, tests="assert add(2, 3) == 5\n", style="script"):
    return Program(code=code, tests=tests, setup="", style=style)


def said(tier, text, hash_seed=0):
    """What a test can say of where it runs: its message."""
    return tier(program(ADD, f"import os, sys\nassert False, str({text})\n"), hash_seed=hash_seed).message


@pytest.mark.parametrize(
    ("code", "tests", "style"),
    [
        (ADD, "assert add(2, 3) == 5\n", "script"),
        (ADD, "assert add(2, 3) == 6, 'six'\n", "script"),
        (ADD, UNITTEST, "unittest"),
        ("def add(a, b):\n    return {}['x']\n", "assert add(2, 3) == 5\n", "script"),
        ("import os\nos._exit(3)\n", "assert 1\n", "script"),
        ("import os\nos.kill(os.getpid(), 11)\n", "assert 1\n", "script"),
        ("import builtins\nbuiltins.len = None\n", "assert 1\n", "script"),
        ("x = bytearray(8 << 30)\n", "assert 1\n", "script"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)\n", "assert 1\n", "script"),
        ("while True: pass\n", "assert 1\n", "script"),
        ("import sys\nsys.exit(0)\n", "assert 1\n", "script"),
        (ADD, "add(1, 2)\n", "script"),
    ],
)
def test_a_verdict_is_that_of_a_new_interpreter(warm, code, tests, style):
    cold = bwrap.BwrapTier(**LIMITS, grouped=False)
    judged = program(code, tests, style)
    first, second = (dataclasses.replace(t(judged, hash_seed=0), seconds=0.0, memory_mb=0.0) for t in (cold, warm))
    assert first == second


@pytest.mark.parametrize(
    "text",
    [
        "os.getcwd()",
        "os.getppid()",
        "sorted(os.listdir('/tmp') + os.listdir('/dev/shm') + os.listdir('.'))",
        "sys.flags",
        "sys.path",
        "[name for name in os.environ if name not in ('ITERPREF_SANDBOX_RUN', 'PWD')]",
        "len(os.listdir('/proc/self/fd'))",
        "[line for line in open('/proc/self/status') if line[:6] in ('CapPrm', 'CapEff', 'NoNewP', 'Seccom')]",
        "sorted(x for x in os.listdir('/dev'))",
        "__import__('resource').getrlimit(7)",
        "__import__('signal').getsignal(2)",
        "sys.argv[0].rpartition('.')[0]",
    ],
)
def test_a_program_finds_what_it_would_find_in_a_new_interpreter(warm, text):
    cold = bwrap.BwrapTier(**LIMITS, grouped=False)
    assert said(warm, text) == said(cold, text) != ""


def test_each_run_has_namespaces_of_its_own(warm):
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
    text = f"[os.stat('/proc/self/ns/' + kind).st_ino for kind in {kinds}]"
    lanes_own = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds}
    runs = [eval(said(warm, text)) for _ in range(2)]
    for place, kind in enumerate(kinds):
        assert runs[0][place] != lanes_own[kind]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may read the memory of a lane")
def test_neither_the_token_nor_the_program_of_a_run_is_in_a_lanes_memory(lanes, warm, monkeypatch):
    tokens = []
    real = secrets.token_hex
    monkeypatch.setattr(secrets, "token_hex", lambda *words: tokens.append(real(*words)) or tokens[-1])
    assert warm(program("of_the_program = 1\n" + ADD), hash_seed=0).passed
    with lanes.lane(0) as lane:
        text = memory_of(zygote_of(lane))
    # What it does hold: the harness, which is the same for all.
    assert b"__looked__" in text
    assert b"of_the_program" not in text
    assert tokens
    assert not any(token.encode() in text for token in tokens)


def memory_of(pid):
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            first, last = (int(place, 16) for place in line.split()[0].split("-"))
            if " rw" in line:
                memory.seek(first)
                found.append(memory.read(last - first))
    return b"".join(found)


def test_the_hash_seed_decides_the_order_of_sets(warm):
    text = "''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    orders = [said(warm, text, seed) for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len(set(orders)) > 1


def test_random_numbers_of_two_runs_differ(warm):
    assert said(warm, "__import__('random').random()") != said(warm, "__import__('random').random()")


def test_a_lane_that_was_killed_is_replaced(lanes, warm):
    assert warm(program(ADD), hash_seed=7).passed
    with lanes.lane(7) as lane:
        killed = lane
    # Before its parent is gone, by which it is found.
    zygote = zygote_of(killed)
    killed._process.kill()
    os.kill(zygote, signal.SIGKILL)
    assert select.select([killed._control], [], [], 10)[0]
    verdict = warm(program(ADD), hash_seed=7)
    assert verdict.passed, verdict


def test_a_lane_that_dies_after_the_look_at_it_is_replaced(lanes, warm, monkeypatch):
    assert warm(program(ADD), hash_seed=7).passed
    with lanes.lane(7) as lane:
        killed = lane
    os.kill(zygote_of(killed), signal.SIGKILL)
    assert select.select([killed._control], [], [], 10)[0]
    monkeypatch.setattr(killed, "is_ready", lambda: True)
    # The sandbox's second try takes another one.
    verdict = tiers.Sandbox(warm, ThreadPoolExecutor(1), interpreter.own()).run(program(ADD), hash_seed=7)
    assert verdict.passed, verdict


def zygote_of(lane):
    """The process that serves the lane, by the bubblewrap that started it."""
    below = [lane._process.pid]
    while True:
        found = [int(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if parent(pid) == below[-1]]
        if not found:
            return below[-1]
        below.append(found[0])


def parent(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
    return 0


def test_a_lane_that_dies_during_a_run_is_our_error_and_the_run_is_tried_again(lanes, warm, monkeypatch):
    calls = []
    real = bwrap.Lane.run

    def run(lane, *words, **options):
        calls.append(lane)
        if len(calls) == 1:
            os.kill(zygote_of(lane), signal.SIGKILL)
            time.sleep(0.1)
        return real(lane, *words, **options)

    monkeypatch.setattr(bwrap.Lane, "run", run)
    with open_sandbox(SETTINGS) as sandbox:
        assert sandbox.run(program(ADD)).passed
    assert len(calls) == 2
    assert calls[0] is not calls[1]


def test_lanes_end_with_the_sandbox_and_with_a_killed_parent():
    with bwrap.open_lanes((), interpreter.own()) as lanes, lanes.lane(0) as lane:
        served = zygote_of(lane)
    assert not os.path.exists(f"/proc/{served}")
    script = (
        "import os, signal, sys\nsys.path.insert(0, os.getcwd())\n"
        "from iterpref_jax.codeflow.sandbox import bwrap, interpreter\n"
        "from tests.codeflow.lanes_test import zygote_of\n"
        "with bwrap.open_lanes((), interpreter.own()) as lanes, lanes.lane(0) as lane:\n"
        "    print(zygote_of(lane), flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{int(ended.stdout)}") and time.monotonic() < end:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{int(ended.stdout)}")


def test_lanes_are_kept_for_a_few_hash_seeds_only(warm, lanes):
    for seed in range(100, 107):
        assert warm(program(ADD), hash_seed=seed).passed
    assert len(lanes._waiting) <= 4


def test_memory_is_limited_for_the_group_in_a_warm_run():
    if why := tiers.why_not("bwrap+cgroup") or tiers.why_cold("bwrap+cgroup"):
        pytest.skip(why)
    code = (
        "import os, time\nfor _ in range(6):\n    if not os.fork():\n        block = bytearray(b'x' * (60 << 20))\n"
        "        time.sleep(60)\nalive = 6\nwhile alive > 3:\n    os.wait()\n    alive -= 1\n" + ADD
    )
    with bwrap.open_lanes((), interpreter.own()) as lanes:
        tier = bwrap.BwrapTier(**(LIMITS | dict(memory_mb=256)), grouped=True, lanes=lanes)
        # Six times 60 MiB do not fit into 256: the kernel has killed some of them.
        assert tier(program(code), hash_seed=0).status in ("pass", "memory_limit")


def test_what_is_preloaded_is_there(capsys):
    with open_sandbox(dataclasses.replace(SETTINGS, preload=("decimal",))) as sandbox:
        assert sandbox.run(program(ADD, "import sys\nassert 'decimal' in sys.modules\n")).passed
    assert "sandbox: tier bwrap, warm" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no_such_module", "concurrent.futures.thread as x"])
def test_what_cannot_be_preloaded_is_named(name):
    with pytest.raises(UserError, match=r"sandbox\.preload.*No module named"):
        open_sandbox(dataclasses.replace(SETTINGS, preload=(name,))).__enter__()


def test_where_warm_does_not_isolate_the_reason_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(tiers, "why_cold", lambda name, python: "the moon is full")
    with open_sandbox(SETTINGS) as sandbox:
        assert sandbox.run(program(ADD)).passed
    said = capsys.readouterr().err
    assert "every program has a new interpreter (sandbox.warm): the moon is full" in said
    assert "warm\n" not in said
