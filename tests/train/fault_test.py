"""Real processes that are killed, stopped and resumed: nothing is lost and no number changes."""

import signal
import subprocess
import time

import pytest

from tests.support.runs import CONFIG, command, environment, make_dataset, numbers, overrides, run_cli

pytestmark = pytest.mark.slow

# Dies while the background thread writes the checkpoint of step 4.
KILL_IN_CHECKPOINT = """
import os, signal
from iterpref_jax.train.checkpoint import Checkpoints
save = Checkpoints.save
def save_and_die(self, step, state, about):
    save(self, step, state, about)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = save_and_die
"""

# Dies in update 2, before there is any checkpoint.
KILL_BEFORE_CHECKPOINT = """
import os, signal
from iterpref_jax.train.loop import Trainer
update = Trainer._update
def update_and_die(self, state, batch, done):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, state, batch, done)
Trainer._update = update_and_die
"""

# Dies with the second part of the reference pass half written.
KILL_IN_REFERENCE = """
import os, signal
from iterpref_jax.train import reference
write = reference._write_part
def write_and_die(path, records):
    if path.name == "part-00001":
        path.parent.joinpath(path.name + ".host-1.partial").write_bytes(b"half a record")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, records)
reference._write_part = write_and_die
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    dataset, cache = make_dataset(folder), folder / "cache"
    done = run_cli("train", CONFIG, f"--workdir={folder / 'run'}", *overrides(dataset), cache=cache)
    assert "report:" in done.stderr
    lines = numbers(folder / "run")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    return dataset, cache, lines


FAULTS = {"checkpoint": KILL_IN_CHECKPOINT, "update": KILL_BEFORE_CHECKPOINT, "reference": KILL_IN_REFERENCE}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_run_killed_with_sigkill_resumes_with_identical_numbers(uninterrupted, tmp_path, fault):
    dataset, cache, expected = uninterrupted
    words = ("train", CONFIG, f"--workdir={tmp_path}", *overrides(dataset))
    died = run_cli(*words, cache=cache, code=fault, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    run_cli(*words, cache=cache)
    assert numbers(tmp_path) == expected


def test_sigterm_saves_exits_75_and_prints_the_command_that_resumes(uninterrupted, tmp_path):
    dataset, cache, expected = uninterrupted
    words = ("train", CONFIG, f"--workdir={tmp_path}", *overrides(dataset))
    process = subprocess.Popen(command(*words), env=environment(cache), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"step": 1,' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    stopped = "stopped after step" in errors  # a fast machine may have finished the six steps first
    assert process.returncode == (75 if stopped else 0), errors
    if stopped:
        assert "resume with: iterpref train" in errors
        resume = errors.split("resume with: iterpref ")[1].split("\n")[0].split()
        run_cli(*(word.strip("'") for word in resume), cache=cache)
    assert numbers(tmp_path) == expected
