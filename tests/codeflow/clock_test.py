"""When a program's seconds begin and end: a machine that is busy elsewhere must not make its program wrong."""

import time

import pytest

from iterpref_jax.codeflow.sandbox import child, interpreter, open_sandbox
from tests.support.sandboxes import ADD, sandbox_settings, script

TOKEN = "0" * 32


@pytest.fixture
def slow_start(monkeypatch):
    """Interpreters of the tier `rlimit` start after two seconds."""
    command = interpreter.Interpreter.command
    late = ["/bin/sh", "-c", 'sleep 2; exec "$@"', "sh"]
    monkeypatch.setattr(interpreter.Interpreter, "command", lambda *given: [*late, *command(*given)])


@pytest.fixture
def talk(monkeypatch):
    """Makes the talk with a process that has said `events` and sleeps; it had no time to start."""
    monkeypatch.setattr(child.secrets, "token_hex", lambda count: TOKEN)
    monkeypatch.setattr(child, "START_S", 0.0)
    with child.Pipes() as pipes:

        def made(*events, wall_s=10.0):
            pipes.theirs[3].write(b"".join(f"{TOKEN}\t{event}\n".encode() for event in events))
            run = child.Run(request=(), wall_s=wall_s, output_bytes=100, case_limits=(), stop=None)
            return child.Talk(pipes, 9, run)

        yield made


def test_a_slow_start_takes_nothing_of_the_programs_seconds(slow_start):
    with open_sandbox(sandbox_settings(wall_s=1.0)) as sandbox:
        verdict = sandbox.run(script(ADD))
        assert verdict.passed, verdict
        assert verdict.seconds < 1
        began = time.monotonic()
        assert sandbox.run(script("import time\ntime.sleep(60)\n" + ADD)).status == "timeout"
        assert time.monotonic() - began < 10


def test_no_start_at_all_is_our_failure_and_not_the_programs(slow_start, monkeypatch):
    monkeypatch.setattr(child, "START_S", 0.5)
    with open_sandbox(sandbox_settings(wall_s=5.0)) as sandbox:
        verdict = sandbox.run(script(ADD))
    assert verdict.status == "sandbox_error", verdict
    assert "did not start within" in verdict.message


@pytest.mark.parametrize("events", [["done"], ["ready", "done"], ["ready", "case", "done"]])
def test_what_was_said_in_time_counts_for_a_judge_that_looks_late(talk, events):
    assert talk(*events).until_its_end() == "done"


def test_a_judge_that_looks_late_and_finds_nothing_ends_the_run(talk):
    assert talk().until_its_end() == "timeout"


def test_the_programs_seconds_begin_once(talk):
    """A program that has found the token gets no more of them by saying `ready` again."""
    said = talk("ready", "ready", wall_s=0.2)
    began = time.monotonic()
    assert said.until_its_end() == "timeout"
    assert 0.2 <= time.monotonic() - began < 5
    ended = said.ended("timeout", returncode=0, cpu_seconds=0.0)
    assert 0.2 <= ended.seconds < 5
