"""`iterpref doctor` in processes of its own: one machine, several hosts, and what is wrong ends with status 1."""

import json

import pytest

from tests.support.processes import Processes
from tests.support.runs import CONFIG, ROOT, make_dataset, run_cli

BASE = f"--config={ROOT / 'configs' / 'base.py'}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def findings(file):
    return [(one["status"], one["check"], one["text"]) for one in json.loads(file.read_text())]


@pytest.mark.slow
def test_a_whole_run_that_is_well_ends_with_status_0_and_leaves_nothing(tmp_path, cache):
    dataset = make_dataset(tmp_path, count=8)
    file, workdir = tmp_path / "doctor.json", tmp_path / "run"
    words = [CONFIG, f"--config.data.path={dataset}", f"--workdir={workdir}", f"--json={file}"]
    ended = run_cli("doctor", *words, "--config.train.global_batch=4", cache=cache)
    found = findings(file)
    checks = ["versions", "flags", "machine", "devices", "mesh", "collective", "step", "run", "data", "workdir"]
    assert list(dict.fromkeys(check for _, check, _ in found)) == checks
    assert not [one for one in found if one[0] == "FAIL"]
    assert "0 wrong" in ended.stdout
    assert not workdir.exists()
    # What `train` refuses before it reads weights.
    ended = run_cli("doctor", *words, "--config.train.global_batch=5000", cache=cache, check=False)
    assert ended.returncode == 1
    assert [text for status, _, text in findings(file) if status == "FAIL" and "train.global_batch is 5000" in text]


@pytest.mark.slow
def test_what_is_wrong_is_a_finding_each_and_the_status_is_1(tmp_path, cache):
    (tmp_path / "file").write_text("x")
    words = [BASE, "--config.mesh.fsdp=3", f"--workdir={tmp_path / 'file' / 'run'}", "--config.data.path=nowhere"]
    ended = run_cli("doctor", *words, cache=cache, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    broken = [line.split()[1] for line in ended.stdout.splitlines() if line.startswith("FAIL")]
    assert broken == ["mesh", "data", "workdir"]


@pytest.mark.slow
def test_a_sum_that_never_ends_ends_with_a_finding_not_with_a_hang(tmp_path, cache):
    code = (
        "import time\n"
        "from iterpref_jax.doctor import examination, exercise\n"
        "examination._COLLECTIVE_S = 1\n"
        "exercise.check_collectives = lambda placement: time.sleep(600)\n"
    )
    ended = run_cli("doctor", BASE, cache=cache, code=code, check=False)
    assert ended.returncode == 1
    assert "FAIL  collective  a sum over all devices did not end within 1 s" in ended.stdout
    assert "open all ports between the hosts" in ended.stdout


@pytest.mark.slow
def test_two_hosts_are_examined_together_and_process_0_prints(tmp_path, cache):
    file = tmp_path / "doctor.json"
    words = ["doctor", BASE, f"--workdir={tmp_path / 'run'}", f"--json={file}"]
    processes = Processes(2, *words, cache=cache, logs=tmp_path / "logs")
    assert processes.wait() == [0, 0], processes.text(0) + processes.text(1)
    found = {check: text for status, check, text in findings(file) if status == "OK"}
    assert found["collective"].startswith("sum over 4 devices of 2 processes")
    assert {"hosts", "clocks", "shared", "step"} <= found.keys()
    assert "wrong" not in processes.text(1)


@pytest.mark.slow
def test_hosts_that_differ_and_folders_that_are_not_shared_are_named(tmp_path, cache):
    other = (
        "from iterpref_jax.doctor import software\n"
        "real = software.versions\n"
        "software.versions = lambda: real() | {'optax': '0.0.1'}\n"
    )
    words = ["doctor", BASE]
    more = {number: [f"--workdir={tmp_path / name}"] for number, name in enumerate("ab")}
    processes = Processes(2, *words, cache=cache, logs=tmp_path / "logs", codes={1: other}, more=more)
    assert processes.wait() == [1, 1], processes.text(0)
    shown = processes.text(0)
    assert "optax differ: " in shown
    assert "0.0.1 on process 1 of 2" in " ".join(shown.split())
    assert "is not one folder for all hosts" in " ".join(shown.split())


@pytest.mark.slow
def test_a_host_that_does_not_come_is_a_finding(tmp_path, cache):
    words = [BASE, "--config.hosts.start_timeout_s=2", "--coordinator=127.0.0.1:1", "--processes=2", "--process=1"]
    ended = run_cli("doctor", *words, cache=cache, check=False)
    assert ended.returncode == 1
    assert "FAIL  hosts " in ended.stdout
    assert "did not reach process 0" in " ".join(ended.stdout.split())
