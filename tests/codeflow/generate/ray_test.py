"""`iterpref generate --ray`: the same bytes as without, killed actors included, and errors that say what to do."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import pytest

from iterpref_jax.codeflow.sandbox import Program, cluster
from iterpref_jax.errors import UserError
from tests.codeflow.generate.run_test import command, contents, generate
from tests.support import llm_server, scripted_model
from tests.support.processes import below
from tests.support.sandboxes import sandbox_settings

LIMITS = sandbox_settings(wall_s=10.0, cpu_s=10, output_kb=64, workers=1)
RAY = ("--ray=local", "--config.sandbox.workers=1")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    out = tmp_path_factory.mktemp("without") / "out"
    with llm_server.serving(scripted_model.behave) as server:
        generate(server, out)
        return out, len(server.requests)


@contextlib.contextmanager
def started(server, out, requests):
    """Yields a run on two actors that has sent so many requests, and its sandboxes' processes."""
    with subprocess.Popen(command(server, out, *RAY), stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while len(server.requests) < requests:
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield running, [pid for pid, title in below(running.pid).items() if title.startswith("ray::SandboxActor")]


@pytest.fixture
def local_ray():
    pytest.importorskip("ray", reason="needs pip install 'iterpref_jax[ray]'")
    # "auto" finds any cluster of this machine, that of a test in another process too.
    with (Path(tempfile.gettempdir()) / "iterpref-tests-ray.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
def test_a_run_on_ray_ends_with_the_same_bytes(without, tmp_path, local_ray):
    whole, asked = without
    with llm_server.serving(scripted_model.behave) as server:
        said = generate(server, tmp_path, *RAY)
        assert len(server.requests) == asked
    assert "tier rlimit" in said
    assert "UNSAFE" in said
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_killed_actors_lose_no_answer_and_change_no_byte(without, tmp_path, local_ray):
    whole, asked = without
    with llm_server.serving(slowly) as server:
        with started(server, tmp_path, 20) as (running, actors):
            assert actors
            for pid in actors:
                os.kill(pid, signal.SIGKILL)
            _, said = running.communicate(timeout=120)
        assert running.returncode == 0, said
        assert len(server.requests) == asked
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_sigterm_ends_the_run_and_its_cluster_and_the_next_start_pays_nothing_twice(without, tmp_path, local_ray):
    whole, asked = without
    with llm_server.serving(slowly) as server:
        with started(server, tmp_path, 20) as (running, _):
            family = below(running.pid)
            running.terminate()
            _, said = running.communicate(timeout=60)
        assert running.returncode == 130, said
        deadline = time.monotonic() + 30
        while any(title.startswith("ray::") for pid, title in titles_of(family).items()):
            assert time.monotonic() < deadline, titles_of(family)
            time.sleep(0.1)
        generate(server, tmp_path)
        # Those under way when it ended.
        assert len(server.requests) <= asked + 4
    assert contents(tmp_path) == contents(whole)


def slowly(request):
    """The scripted model, slow enough that there is a middle of the run."""
    return llm_server.say(scripted_model.answer(request.text, None), pause_s=0.05)


def titles_of(pids):
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return found


# In a process of its own: a test process that has talked to one cluster may not fork, or talk to another.
SCRIPT = """
import dataclasses, sys
from iterpref_jax.codeflow.sandbox import Program, cluster
from iterpref_jax.errors import UserError
from tests.codeflow.generate.ray_test import LIMITS

def program(code, tests):
    return Program(code=code, setup="", style="script", tests=tests)
"""


def with_ray(body):
    script = SCRIPT + body
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
def test_programs_meet_the_signals_of_an_ordinary_process_and_errors_keep_their_class(local_ray):
    ended = with_ray("""
blocked = "import signal\\nBLOCKED = signal.pthread_sigmask(signal.SIG_BLOCK, ())"
with cluster.open_cluster(LIMITS, "local") as judge:
    print(judge.run(program(blocked, "assert not BLOCKED")).status)
    try:
        judge.run(dataclasses.replace(program("", ""), style="none"))
    except UserError as error:
        print(type(error).__name__, "style" in str(error))
""")
    assert ended.stdout.splitlines()[-2:] == ["pass", "UserError True"]


@pytest.mark.slow
def test_what_a_cluster_lacks_is_named(local_ray):
    ended = with_ray("""
for limits, address in ((dataclasses.replace(LIMITS, workers=100_000), "local"), (LIMITS, "auto"),
                        (dataclasses.replace(LIMITS, allow_unsafe=False), "local")):
    try:
        with cluster.open_cluster(limits, address):
            pass
    except UserError as error:
        print("error:", str(error).splitlines()[0])
""")
    few, none, unsafe = (line for line in ended.stdout.splitlines() if line.startswith("error:"))
    assert "no node of the Ray cluster has so many CPUs" in few
    assert "--ray=auto: no cluster there" in none
    assert "sandbox.allow_unsafe=True" in unsafe


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'iterpref_jax\[ray\]'"), cluster.open_cluster(LIMITS, "local"):
        pass


class Lost(Exception):
    """Stands for what Ray raises for a dead actor: Ray restarts real ones, so that they do not lose every call."""


def lose(reference):
    raise Lost(f"the actor died with {reference}")


def test_a_program_whose_sandboxes_all_die_is_a_sandbox_error_that_the_next_start_tries_again(monkeypatch):
    asked = []

    def handle(name):
        return types.SimpleNamespace(run=types.SimpleNamespace(remote=lambda *_, **checks: asked.append(name)))

    errors = types.SimpleNamespace(RayError=Lost, RayTaskError=type("RayTaskError", (Lost,), {}))
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(get=lose, exceptions=errors))
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
    monkeypatch.setattr(cluster, "PAUSES_S", (0.0, 0.0, 0.0))
    judge = cluster.Cluster([handle("a"), handle("b")], "rlimit", 2)
    verdict = judge.run(Program(code="", setup="", style="script", tests=""))
    assert verdict.status == "sandbox_error"
    assert "the actor died" in verdict.message
    # Each gets its turn before one that was just lost is asked again.
    assert asked[:2] == ["a", "b"]
    assert len(asked) == 4
