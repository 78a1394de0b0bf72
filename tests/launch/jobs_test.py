"""Jobs that Slurm or a user stops, and training that dies: what the launchers then do, with real processes."""

import os
import signal
import subprocess
import time

import pytest

from tests.launch.shell import LAUNCH, ROOT, calls, environment, fake, launch

SHARED = ["--config=configs/base.py", "--workdir=/shared/run"]
SBATCH = ["bash", str(LAUNCH / "slurm.sbatch"), "--env=/venv", "--container=", "--mounts=", "--attempts=3"]
# Training that runs until it is asked to stop, and then needs a moment to save.
SAVES = "trap 'sleep 0.3; exit {status}' USR1 TERM; echo $$ > {folder}/pid; while :; do sleep 0.05; done"


def wait_for(path, process):
    end = time.monotonic() + 20
    while not path.exists() or not path.read_text():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def start_job(tmp_path, body, **values):
    fake(tmp_path, "srun", body)
    fake(tmp_path, "scancel", f"kill -USR1 $(cat {tmp_path}/pid)")
    job = {"SLURM_JOB_ID": "7", **values}
    return subprocess.Popen(
        [*SBATCH, "--", *SHARED], env=environment(tmp_path, **job), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def signalled(tmp_path, status, *numbers):
    """What a job runs that gets these signals, and whose training then saves and ends with a status."""
    process = start_job(tmp_path, SAVES.format(status=status, folder=tmp_path))
    wait_for(tmp_path / "pid", process)
    for number in numbers:
        process.send_signal(number)
    assert process.wait(20) == status
    return calls(tmp_path)[1:]


# The status of srun is the highest one of all tasks: 137 where it killed some of them while they ended.
@pytest.mark.parametrize("status", [75, 137])
def test_ahead_of_its_time_limit_a_job_saves_and_is_queued_again(status, tmp_path):
    ran = signalled(tmp_path, status, signal.SIGUSR1)
    assert ran == [["scancel", "--signal=USR1", "7"], ["scontrol", "requeue", "7"]]


@pytest.mark.parametrize("status", [0, 1])
def test_a_job_whose_training_has_ended_by_then_or_failed_is_not_queued_again(status, tmp_path):
    assert signalled(tmp_path, status, signal.SIGUSR1) == [["scancel", "--signal=USR1", "7"]]


@pytest.mark.parametrize(
    "numbers", [[signal.SIGUSR2], [signal.SIGUSR1, signal.SIGUSR2], [signal.SIGUSR2, signal.SIGUSR1]]
)
def test_a_user_ends_a_job_that_saves_first_and_asks_its_tasks_once(numbers, tmp_path):
    assert signalled(tmp_path, 75, *numbers) == [["scancel", "--signal=USR1", "7"]]


def test_a_preempted_job_whose_tasks_alone_were_told_is_queued_again(tmp_path):
    process = start_job(tmp_path, SAVES.format(status=75, folder=tmp_path))
    wait_for(tmp_path / "pid", process)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert process.wait(20) == 75
    assert calls(tmp_path)[-1] == ["scontrol", "requeue", "7"]


@pytest.mark.parametrize("status", [0, 75, 137])
def test_a_job_that_is_ended_by_its_user_waits_for_training_to_save_and_is_not_queued_again(status, tmp_path):
    process = start_job(tmp_path, SAVES.format(status=status, folder=tmp_path))
    wait_for(tmp_path / "pid", process)
    # As `scancel` does it: the script and the tasks.
    process.send_signal(signal.SIGTERM)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert process.wait(20) == status
    assert [call[0] for call in calls(tmp_path)] == ["srun"]


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        *[(0, "0", False), (1, "0", False), (2, "0", False), (137, "0", True)],
        *[(75, "0", True), (75, "1", True), (75, "2", False)],
    ],
)
def test_only_a_job_that_can_go_on_is_queued_again_as_often_as_was_allowed(status, restarts, again, tmp_path):
    process = start_job(tmp_path, f"exit {status}", SLURM_RESTART_COUNT=restarts)
    assert process.wait(20) == status
    assert (["scontrol", "requeue", "7"] in calls(tmp_path)) == again


def test_a_jobs_training_is_what_the_dry_run_shows(tmp_path):
    shown = launch(tmp_path, "slurm.sbatch", *SBATCH[2:], "--dry-run", "--", *SHARED).stdout.splitlines()[0]
    assert start_job(tmp_path, "exit 0").wait(20) == 0
    assert calls(tmp_path) == [shown.split()]


def test_what_a_container_mounts_is_there_before_the_job_is_submitted(tmp_path):
    run = tmp_path / "new" / "run"
    fake(tmp_path, "sbatch", f"[ -d {run} ]")
    words = ["--container=/shared/i.sqsh", "--", SHARED[0], f"--workdir={run}"]
    assert launch(tmp_path, "slurm.sh", *words).returncode == 0
    # In a container the workdir is elsewhere.
    ended = launch(tmp_path, "slurm.sh", f"--mounts={tmp_path}:/data", *words[:-1], "--workdir=/data/run", "--dry-run")
    assert (ended.returncode, "mkdir" in ended.stdout) == (0, False)


def gpu_node(tmp_path, body, *options):
    fake(tmp_path / "venv" / "bin", "iterpref", f'[ "$1" = train ] || exit 0\n{body}')
    fake(tmp_path / "venv" / "bin", "python")
    fake(tmp_path, "sleep")
    words = ["bash", str(LAUNCH / "gpu_node.sh"), f"--venv={tmp_path}/venv", *options, "--", *SHARED]
    return subprocess.Popen(words, env=environment(tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True)


def starts(tmp_path):
    return [call[1] for call in calls(tmp_path / "venv" / "bin") if call[0] == "iterpref"]


@pytest.mark.parametrize(
    ("status", "expected"), [(0, ["doctor", "train"]), (1, ["doctor", "train"]), (137, ["doctor", "train", "train"])]
)
def test_on_one_node_training_that_was_killed_is_started_again_and_bad_input_is_not(status, expected, tmp_path):
    process = gpu_node(tmp_path, f"exit {status}", "--attempts=2")
    assert process.wait(20) == status
    assert starts(tmp_path) == expected


def test_on_one_node_term_is_handed_on_and_training_saves(tmp_path):
    saves = SAVES.format(status=75, folder=tmp_path).replace("sleep", "/bin/sleep")
    process = gpu_node(tmp_path, saves)
    wait_for(tmp_path / "pid", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert starts(tmp_path) == ["doctor", "train"]


def test_on_one_node_ctrl_c_is_handed_on_to_training_that_has_just_begun(tmp_path):
    # A shell starts what runs in its background with Ctrl-C ignored, and what is ignored cannot be trapped.
    process = gpu_node(tmp_path, f"trap 'exit 75' INT; echo $$ > {tmp_path}/pid; while :; do /bin/sleep 0.1; done")
    wait_for(tmp_path / "pid", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 75
    assert starts(tmp_path) == ["doctor", "train"]


def test_a_pods_training_is_started_again_only_where_that_can_help(tmp_path):
    """A first attempt of minutes that ends with 75 is followed by another; one that fails at once is the last."""
    follow = (
        'case "$*" in\n'
        f"*iterpref.log*show*LoadState*) [ -e {tmp_path}/once ] && exit 1; touch {tmp_path}/once; exit 75 ;;\n"
        "*describe*) echo ACTIVE ;;\n"
        "esac"
    )
    ended = pod_run(tmp_path, follow)
    assert ended.returncode == 1, ended.stderr
    assert "attempt 1 of 20 ended with status 75" in ended.stderr
    assert "attempt 2 of 20 ended with status 1" in ended.stderr
    stops = [call for call in calls(tmp_path) if "--command=sudo systemctl stop iterpref" in call]
    assert len(stops) == 1


def test_an_error_of_a_pods_training_comes_again_however_late_it_was(tmp_path):
    follow = 'case "$*" in *iterpref.log*show*LoadState*) exit 101 ;; *describe*) echo ACTIVE ;; esac'
    ended = pod_run(tmp_path, follow)
    assert ended.returncode == 1, ended.stderr
    assert "attempt 1 of 20 ended with status 1" in ended.stderr
    assert "attempt 2" not in ended.stderr


def pod_run(tmp_path, follow):
    fake(tmp_path, "gcloud", follow)
    fake(tmp_path, "sleep")
    slice_of = ["--name=pod", "--zone=z", "--type=v6e-32", "--runtime=v2-alpha-tpuv6e"]
    return launch(tmp_path, "tpu_pod.sh", "run", *slice_of, "--", *SHARED)
