"""Runs of several real processes: the numbers of one, and the same numbers after any of them was killed."""

import json
import signal

import pytest

from tests.support.processes import SECONDS, Processes, run_all
from tests.support.runs import CONFIG, make_dataset, numbers, overrides
from tests.train.fault_test import FAULTS

pytestmark = pytest.mark.slow

# Hosts add up gradients and sums in another order than the devices of one process do: a few float32 roundings a number.
RELATIVE, ABSOLUTE = 1e-5, 1e-6
VANISHED_S = 10
CHANGES = {"rows.rows_per_microbatch": 4, "hosts.vanished_after_s": VANISHED_S}


def words(dataset, workdir, **changes):
    return ("train", CONFIG, f"--workdir={workdir}", *overrides(dataset, **CHANGES, **changes))


def updates(workdir):
    """The numbers of metrics.jsonl that no clock made, without whether ties of rounding count as won."""
    found = {}
    for line in numbers(workdir):
        place = line.pop("split"), line.pop("step")
        if place[0] in ("train", "eval"):
            assert place not in found
            found[place] = {name: value for name, value in line.items() if "accuracies" not in name}
    return found


def assert_close(workdir, expected):
    found = updates(workdir)
    assert found.keys() == expected.keys()
    for place, wanted in expected.items():
        assert found[place] == pytest.approx(wanted, rel=RELATIVE, abs=ABSOLUTE), place


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    dataset, cache = make_dataset(folder), folder / "cache"
    run_all(1, *words(dataset, folder / "run"), cache=cache, logs=folder)
    return dataset, cache, updates(folder / "run")


@pytest.fixture(scope="module")
def two(alone, tmp_path_factory):
    """The same run of two processes with two devices each."""
    dataset, cache, _ = alone
    folder = tmp_path_factory.mktemp("two")
    processes = run_all(2, *words(dataset, folder / "run"), cache=cache, logs=folder)
    return folder / "run", processes


def test_two_processes_get_the_numbers_of_one(alone, two):
    assert_close(two[0], alone[2])


def test_two_processes_evaluate_whole_pairs_as_one_does(two, alone, tmp_path):
    def rows(count):
        out = tmp_path / str(count)
        run_all(count, "heldout", f"--workdir={two[0]}", f"--out={out}", cache=alone[1], logs=tmp_path)
        return [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]

    for found, expected in zip(rows(2), rows(1), strict=True):
        assert found["pair_id"] == expected["pair_id"]
        for name, sums in expected["sums"].items():
            assert found["sums"][name] == pytest.approx(sums, rel=RELATIVE, abs=1e-5)


def test_one_process_speaks_for_all(two):
    workdir, processes = two
    for word in ("of 2 processes", "training: 6/6 steps", "report: ", "export it: "):
        assert word in processes.text(0)
        assert word not in processes.text(1)
    assert sum(line["split"] == "train" for line in numbers(workdir)) == 6


def test_four_processes_that_share_rows_get_the_numbers_of_one(alone, tmp_path):
    dataset, cache, expected = alone
    # Two processes hold the halves of the same rows: both read them, and neither is counted twice.
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 2}
    run_all(4, *words(dataset, tmp_path / "run", **mesh), cache=cache, logs=tmp_path)
    assert_close(tmp_path / "run", expected)


@pytest.mark.parametrize(
    ("fault", "dies", "then"), [("update", 1, 2), ("checkpoint", 0, 2), ("reference", 0, 2), ("checkpoint", 1, 1)]
)
def test_a_killed_process_ends_the_others_and_any_number_of_them_goes_on(two, alone, tmp_path, fault, dies, then):
    dataset, cache, _ = alone
    command = words(dataset, tmp_path / "run")
    processes = Processes(2, *command, cache=cache, logs=tmp_path / "died", codes={dies: FAULTS[fault]})
    assert processes.each[dies].wait(SECONDS) == -signal.SIGKILL, processes.text(dies)
    # Within the promised time, and a few seconds of a busy machine.
    assert processes.wait(1.1 * VANISHED_S + 10)[1 - dies] == 75, processes.text(1 - dies)
    said = processes.text(1 - dies).split("error: ")[-1]
    assert f"process {dies}" in said
    assert ("checkpoints/2; start all" if fault == "checkpoint" else "No checkpoint yet in ") in said
    resume = said.split("start all processes again to go on: iterpref train ")[-1]
    assert "--process" not in resume
    assert f"--workdir={tmp_path / 'run'}" in resume
    run_all(then, *command, cache=cache, logs=tmp_path)
    if then == 2:
        assert updates(tmp_path / "run") == updates(two[0])
    assert_close(tmp_path / "run", alone[2])


def test_sigterm_to_one_process_stops_all_after_the_same_update(two, alone, tmp_path):
    dataset, cache, _ = alone
    command = words(dataset, tmp_path / "run")
    processes = Processes(2, *command, cache=cache, logs=tmp_path / "stopped")
    processes.wait_for(tmp_path / "run" / "metrics.jsonl", '"step": 1,')
    processes.each[1].send_signal(signal.SIGTERM)
    statuses = processes.wait()
    stopped = "stopped after step" in processes.text(0)  # a fast machine may have finished the six steps first
    assert statuses == ([75, 75] if stopped else [0, 0]), processes.text(0) + processes.text(1)
    assert "process 1: SIGTERM: finishing this step, then saving" in processes.text(1)
    if stopped:
        assert "resume with: iterpref train" in processes.text(0)
        run_all(2, *command, cache=cache, logs=tmp_path)
    assert updates(tmp_path / "run") == updates(two[0])


INTERRUPTED = """
import os, signal
from iterpref_jax.train import held_out
evaluate, made = held_out.HeldOut.evaluate, []
def interrupted(*words):
    made.append(words)
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(*words)
held_out.HeldOut.evaluate = interrupted
"""


def test_sigterm_in_an_evaluation_saves_at_once_and_the_evaluation_comes_again(alone, tmp_path):
    dataset, cache, _ = alone
    # Small batches, so that an evaluation has several.
    changes = {"train.global_batch": 2, "train.eval_every": 2, "train.checkpoint_every": 0}
    command, whole = (words(dataset, tmp_path / name, **changes) for name in ("run", "whole"))
    processes = Processes(2, *command, cache=cache, logs=tmp_path / "stopped", codes={1: INTERRUPTED})
    assert processes.wait() == [75, 75], processes.text(0) + processes.text(1)
    assert "stopped after step 2" in processes.text(0)
    assert {("train", 2), ("eval", 0)} <= updates(tmp_path / "run").keys()
    assert ("eval", 2) not in updates(tmp_path / "run")
    run_all(2, *command, cache=cache, logs=tmp_path / "resumed")
    run_all(2, *whole, cache=cache, logs=tmp_path / "whole logs")
    assert updates(tmp_path / "run") == updates(tmp_path / "whole")
