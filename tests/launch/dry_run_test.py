"""Dry runs: golden text of every launcher, nothing is run, and what is shown is what would be run."""

import re
import shlex
import subprocess

import pytest

from tests.launch.shell import LAUNCH, ROOT, WORDS, calls, environment, fake, launch, tool

POD = ["--name=pod", "--zone=us-east5-b"]
SLICE = ["--type=v6e-32", "--runtime=v2-alpha-tpuv6e"]
JOB = ["--name=run7", "--image=registry/iterpref:1"]
V5P = [*JOB, "--accelerator=v5p:4x4x4", "--cluster=c"]
SHARED = ["--config=configs/base.py", "--workdir=/shared/run"]
CASES = {
    "tpu_pod_run": ["tpu_pod.sh", "run", *POD, *SLICE, "--spot", "--env=HF_TOKEN=a b", "--", *WORDS],
    "tpu_pod_slices": ["tpu_pod.sh", "start", *POD, "--slices=2", "--project=p", "--ssh=--internal-ip", "--", *WORDS],
    "tpu_pod_doctor": ["tpu_pod.sh", "doctor", *POD, "--", *WORDS],
    "tpu_pod_stop": ["tpu_pod.sh", "stop", *POD],
    "tpu_pod_down": ["tpu_pod.sh", "down", *POD],
    "gke_tpu": ["gke_jobset.sh", "apply", *JOB, "--accelerator=v6e:4x4", "--slices=2", "--spot", "--", *WORDS],
    "gke_gpu": [
        *["gke_jobset.sh", "apply", *JOB, "--accelerator=h100:4x8", "--claim=disk", "--queue=team", "--secret=hub"],
        *["--env=A=a: #'\"\\", "--", *SHARED],
    ],
    "gke_build": ["gke_jobset.sh", "build", "--image=registry/iterpref:1", "--accelerator=v5p:4x4x4"],
    "gke_logs": ["gke_jobset.sh", "logs", "--name=run7", "--namespace=team"],
    "gke_delete": ["gke_jobset.sh", "delete", "--name=run7"],
    "xpk": ["gke_jobset.sh", "xpk", *JOB, "--accelerator=v5p:4x4x4", "--slices=2", "--cluster=c", "--", *WORDS],
    "slurm": ["slurm.sh", "--nodes=4", "--partition=gpu", "--sbatch=--account=me", "--env=/shared/venv", "--", *SHARED],
    "slurm_container": ["slurm.sh", "--nodes=2", "--per-gpu", "--container=/shared/i.sqsh", "--", *SHARED],
    "slurm_bucket": ["slurm.sh", "--container=/shared/i.sqsh", "--", SHARED[0], "--workdir=gs://b/run"],
    "gpu_node": ["gpu_node.sh", "--venv=/venv", "--gpus=0,1", "--", *SHARED],
    "gpu_node_container": ["gpu_node.sh", "--image=registry/iterpref:1", "--", *SHARED],
    "skypilot": ["skypilot.sh", "--nodes=2", "--gpus=H200:8", "--infra=gcp", "--secret=HF_TOKEN", "--", *WORDS],
}


def dry_run(folder, name):
    script, *words = CASES[name]
    at = words.index("--") if "--" in words else len(words)
    ended = launch(folder, script, *words[:at], "--dry-run", *words[at:])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert calls(folder) == []
    return ended.stdout


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_shows_every_command_and_runs_none(name, tmp_path):
    golden = ROOT / "tests" / "launch" / "golden" / f"{name}.txt"
    assert dry_run(tmp_path, name).replace(str(ROOT), "CHECKOUT") == golden.read_text()


def shown(text):
    """The commands of a dry run as their words; a command may take several lines, inside quotes."""
    found, lines = [], [line for line in text.splitlines() if not line.startswith("#")]
    while lines:
        command = lines.pop(0)
        while True:
            try:
                found.append(shlex.split(command))
                break
            except ValueError:
                command += "\n" + lines.pop(0)
    return found


@pytest.mark.parametrize(
    "name", ["tpu_pod_slices", "tpu_pod_stop", "tpu_pod_down", "gke_build", "gke_logs", "xpk", "skypilot"]
)
def test_what_a_dry_run_shows_is_what_runs(name, tmp_path):
    expected = shown(dry_run(tmp_path / "dry", name))
    script, *words = CASES[name]
    ended = launch(tmp_path / "real", script, *words)
    assert ended.returncode == 0, ended.stderr
    ran = ["\n".join(words) for words in calls(tmp_path / "real")]
    assert sorted(ran) == sorted("\n".join(words) for words in expected)


def test_a_run_on_a_pod_shows_what_runs_where_the_slice_is_there_at_once(tmp_path):
    expected = shown(dry_run(tmp_path / "dry", "tpu_pod_run"))
    made = tmp_path / "made"
    absent = f'case "$*" in *create*) touch {made} ;; *describe*) echo NOT_FOUND >&2; exit 1 ;; esac'
    fake(tmp_path, "gcloud", f"[ -e {made} ] && echo ACTIVE || {{ {absent}; }}")
    ended = launch(tmp_path, *CASES["tpu_pod_run"])
    assert ended.returncode == 0, ended.stderr
    ran = ["\n".join(words) for words in calls(tmp_path)]
    # The state is asked for more than once.
    assert list(dict.fromkeys(ran)) == ["\n".join(words) for words in expected]


@pytest.mark.parametrize(
    "words", [["plain"], ["it's", 'say "x"'], ["a b", "$HOME", "`id`", "\\", "*", ""], ["two\nlines", "é"]]
)
def test_quoted_words_are_read_back_as_they_were(words, tmp_path):
    script = f'. {LAUNCH}/commands.sh; line=$(quoted "$@"); eval "set -- $line"; printf "%s\\0" "$@"'
    ended = subprocess.run(["bash", "-c", script, "x", *words], capture_output=True, text=True, check=True)
    assert ended.stdout.split("\0")[:-1] == words


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("tpu_pod")])
def test_what_runs_on_the_workers_is_a_correct_script(name, tmp_path):
    shellcheck = tool("shellcheck")
    remote = [
        word.partition("=")[2]
        for words in shown(dry_run(tmp_path, name))
        for word in words
        if word.startswith("--command=")
    ]
    for script in remote:
        # Words of training may hold a $ that is none of the shell's (SC2016).
        checker = [shellcheck, "--shell=bash", "--exclude=SC2016", "-"] if shellcheck else ["bash", "-n"]
        ended = subprocess.run(checker, input=script, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("tpu_pod.sh", ["fly"], "unknown action 'fly'"),
        ("tpu_pod.sh", ["start", "--zone=z", "--", *WORDS], "--name and --zone are needed"),
        ("tpu_pod.sh", ["up", *POD], "up needs --type and --runtime"),
        ("tpu_pod.sh", ["start", *POD, "--slices=0", "--", *WORDS], "--slices must be a whole number above 0, not '0'"),
        ("tpu_pod.sh", ["start", *POD, "--spotty"], "unknown option --spotty"),
        ("tpu_pod.sh", ["start", *POD, "--", "--workdir=gs://b/r"], "at least --config=FILE and --workdir=DIR"),
        ("tpu_pod.sh", ["start", *POD, "--", "--config=none.py", "--workdir=gs://b/r"], "there is no none.py"),
        ("tpu_pod.sh", ["start", *POD, "--", "train", *WORDS], "not 'train'"),
        ("tpu_pod.sh", ["start", *POD, "--", "--config=setup.py", WORDS[1]], "--config=setup.py: of this machine"),
        ("tpu_pod.sh", ["doctor", *POD, "--", "--config=/x/c.py", WORDS[1]], "the run gets configs/ only"),
        ("gke_jobset.sh", ["apply", *V5P, "--", "--config=setup.py", WORDS[1]], "give --config=configs/NAME.py"),
        ("gke_jobset.sh", ["xpk", *V5P, "--", "--config=setup.py", WORDS[1]], "an image must be built again"),
        ("gke_jobset.sh", ["apply", *V5P, "--", "--config=configs/../setup.py", WORDS[1]], "gets configs/ only"),
        ("gke_jobset.sh", ["apply", *V5P, "--", "--config=/shared/c.py", WORDS[1]], "gets configs/ only"),
        ("gke_jobset.sh", ["apply", *V5P, "--claim=d", "--", "--config=/x.py", WORDS[1]], "a file below /shared/"),
        ("tpu_pod.sh", ["stop", *POD, "--", *WORDS], "stop takes no words behind --"),
        ("tpu_pod.sh", ["stop", "--name", "--zone=z"], "--name needs a value: --name=VALUE"),
        ("gke_jobset.sh", ["apply", "--name=Run", "--", *WORDS], "apply needs --name"),
        ("gke_jobset.sh", ["apply", *JOB, "--accelerator=v6e:4x4x4", "--", *WORDS], "v6e slices have two sides"),
        ("gke_jobset.sh", ["apply", *JOB, "--accelerator=v5p:4x4", "--", *WORDS], "v5p slices have three sides"),
        ("gke_jobset.sh", ["apply", *JOB, "--accelerator=v7:4x4", "--", *WORDS], "v7 is none of"),
        ("gke_jobset.sh", ["apply", *JOB, "--accelerator=h100:8", "--", *WORDS], "hosts x GPUs"),
        ("gke_jobset.sh", ["apply", *JOB, "--accelerator=h100:1x8", "--slices=2", "--", *WORDS], "are of TPUs"),
        ("gke_jobset.sh", ["apply", *JOB, "--accelerator=v6e:2x4", "--chips-per-host=3", "--", *WORDS], "no multiple"),
        ("gke_jobset.sh", ["apply", *JOB, "--accelerator=v6e:2x4", "--env=A B", "--", *WORDS], "--env=A B: expected"),
        ("slurm.sh", ["--", *SHARED], "give one of --env=DIR and --container=IMAGE"),
        ("slurm.sh", ["--env=/e", "--mounts=/a:/a", "--", *SHARED], "--mounts has no effect"),
        ("slurm.sh", ["--env=/e", "--", "--config=configs/base.py", "--workdir=run"], "give the whole path"),
        ("gpu_node.sh", ["--cuda=11", "--", *SHARED], "--cuda must be 12 or 13"),
        ("skypilot.sh", ["--", *SHARED], "is lost with it"),
        ("skypilot.sh", ["--", SHARED[0], "--workdir=s3://b/r"], "--workdir=s3://b/r: of buckets"),
        ("slurm.sh", ["--env=/e", "--", SHARED[0], "--workdir=s3://b/r"], "are written to gs:// only"),
        ("tpu_pod.sh", ["start", *POD, "--", SHARED[0], "--workdir=s3://b/r"], "are written to gs:// only"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense_are_refused_before_anything_runs(script, words, message, tmp_path):
    ended = launch(tmp_path, script, *words)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert calls(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("gke_jobset.sh", ["apply", *V5P, "--claim=disk", "--dry-run", "--", "--config=/shared/c.py:lora", WORDS[1]]),
        ("gke_jobset.sh", ["xpk", *V5P, "--dry-run", "--", "--config=configs/demo.py:stage=sft", WORDS[1]]),
        # Slurm's nodes see the whole checkout.
        ("slurm.sh", ["--env=/e", "--dry-run", "--", "--config=setup.py", SHARED[1]]),
        ("slurm.sh", ["--env=/e", "--dry-run", "--", "--config=/shared/c.py", SHARED[1]]),
    ],
)
def test_a_config_that_the_machines_have_is_taken(script, words, tmp_path):
    ended = launch(tmp_path, script, *words)
    assert ended.returncode == 0, ended.stderr
    assert next(word for word in words if word.startswith("--config=")) in ended.stdout


@pytest.mark.parametrize(
    "script", ["tpu_pod.sh", "gke_jobset.sh", "slurm.sh", "slurm.sbatch", "gpu_node.sh", "skypilot.sh"]
)
def test_every_launcher_says_how_to_use_it_and_names_its_options(script, tmp_path):
    ended = launch(tmp_path, script, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    options = set(re.findall(r"^    (--[a-z-]+)=\*", (LAUNCH / script).read_text(), re.MULTILINE))
    missing = [option for option in sorted(options) if option not in ended.stdout]
    assert not missing


def test_dry_runs_need_no_command_of_the_cloud(tmp_path):
    """The fakes that other tests put in front would hide a command that is asked for on the way."""
    script, *words = CASES["gke_tpu"]
    at = words.index("--")
    kept = environment(tmp_path) | {"PATH": "/usr/bin:/bin"}
    command = ["bash", str(LAUNCH / script), *words[:at], "--dry-run", *words[at:]]
    assert subprocess.run(command, env=kept, capture_output=True, cwd=ROOT, check=False).returncode == 0
