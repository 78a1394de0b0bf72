"""What GKE and SkyPilot are given: valid by their schemas, and with the right numbers in it."""

import json
import subprocess

import pytest
import yaml

from tests.launch.shell import LAUNCH, ROOT, WORDS, fake, launch

kubernetes_validate = pytest.importorskip("kubernetes_validate")
jsonschema = pytest.importorskip("jsonschema")

OLDEST, NEWEST = "1.30", "1.34"


def manifest(tmp_path, accelerator, *options, words=WORDS):
    name = ["--name=run7", "--image=registry/iterpref:1", f"--accelerator={accelerator}"]
    ended = launch(tmp_path, "gke_jobset.sh", "manifest", *name, *options, "--", *words)
    assert ended.returncode == 0, ended.stderr
    return yaml.safe_load(ended.stdout)


def job(content):
    return content["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(content):
    return job(content)["template"]["spec"]


ALL = ["--spot", "--queue=team", "--claim=disk", "--secret=hub", "--env=A=1"]


@pytest.mark.parametrize("options", [[], ALL], ids=["plain", "all"])
@pytest.mark.parametrize("accelerator", ["v5p:2x2x4", "v6e:4x4", "h100:4x8"])
def test_the_manifest_is_a_valid_jobset_of_valid_jobs(accelerator, options, tmp_path):
    content = manifest(tmp_path, accelerator, *options)
    jsonschema.validate(content, json.loads((ROOT / "tests" / "launch" / "jobset_schema.json").read_text()))
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "run7"}, "spec": job(content)}
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(whole, version, strict=True)


@pytest.mark.parametrize(
    ("status", "evicted", "counts"), [(1, False, True), (137, False, True), (137, True, False), (75, False, False)]
)
def test_only_failures_count_as_restarts_and_neither_evicted_pods_nor_the_hosts_they_leave(
    status, evicted, counts, tmp_path
):
    content = manifest(tmp_path, "v6e:4x4", "--slices=2")
    container = pod(content)["containers"][0]["name"]
    # Kubernetes knows pod failure policies only of pods that it does not start again by itself.
    assert (pod(content)["restartPolicy"], job(content)["backoffLimit"]) == ("Never", 0)

    def matches(rule):
        if "onExitCodes" in rule:
            codes = rule["onExitCodes"]
            assert (codes["containerName"], codes["operator"]) == (container, "In")
            return status in codes["values"]
        assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        return evicted

    action = next((rule["action"] for rule in job(content)["podFailurePolicy"]["rules"] if matches(rule)), None)
    reason = "PodFailurePolicy" if action == "FailJob" else "BackoffLimitExceeded"
    rules = content["spec"]["failurePolicy"]["rules"]
    jobset = next((rule["action"] for rule in rules if reason in rule["onJobFailureReasons"]), "RestartJobSet")
    assert jobset == ("RestartJobSet" if counts else "RestartJobSetAndIgnoreMaxRestarts")


@pytest.mark.parametrize("place", ["spec", "failurePolicy", "replicatedJobs"])
def test_the_schema_of_a_jobset_refuses_what_it_does_not_know(place, tmp_path):
    content = manifest(tmp_path, "v6e:4x4")
    part = {"spec": content["spec"], **content["spec"]}[place]
    (part[0] if place == "replicatedJobs" else part)["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads((ROOT / "tests" / "launch" / "jobset_schema.json").read_text()))


@pytest.mark.parametrize(
    ("accelerator", "options", "hosts", "limits", "label"),
    [
        ("v6e:4x4", ["--slices=3"], 4, {"google.com/tpu": 4}, "tpu-v6e-slice"),
        ("v6e:2x4", ["--chips-per-host=8"], 1, {"google.com/tpu": 8}, "tpu-v6e-slice"),
        ("v5e:1x1", [], 1, {"google.com/tpu": 1}, "tpu-v5-lite-podslice"),
        ("v5e:16x16", [], 64, {"google.com/tpu": 4}, "tpu-v5-lite-podslice"),
        ("v5p:4x4x4", [], 16, {"google.com/tpu": 4}, "tpu-v5p-slice"),
        ("h200:4x8", [], 4, {"nvidia.com/gpu": 8}, "nvidia-h200-141gb"),
    ],
)
def test_hosts_and_devices_follow_from_the_topology(accelerator, options, hosts, limits, label, tmp_path):
    content = manifest(tmp_path, accelerator, *options)
    slices = 3 if options == ["--slices=3"] else 1
    assert content["spec"]["replicatedJobs"][0]["replicas"] == slices
    assert (job(content)["parallelism"], job(content)["completions"]) == (hosts, hosts)
    assert pod(content)["containers"][0]["resources"]["limits"] == limits
    assert label in pod(content)["nodeSelector"].values()


@pytest.mark.parametrize(
    "word", ["it's", 'a "b"', "a & b @ENV@ @ARGS@", "back\\slash", "yes", "1", "# no comment", "a: {b}", "é"]
)
def test_every_word_reaches_training_as_it_was_typed(word, tmp_path):
    content = manifest(tmp_path, "v6e:4x4", words=[*WORDS, word])
    assert pod(content)["containers"][0]["args"] == ["train", "--config.hosts.start_timeout_s=1800", *WORDS, word]


def test_kubernetes_fills_nothing_into_a_word(tmp_path):
    content = manifest(tmp_path, "v6e:4x4", words=[*WORDS, "$(HOSTNAME)"])
    assert pod(content)["containers"][0]["args"][-1] == "$$(HOSTNAME)"


def test_gpu_hosts_find_the_first_one_by_its_name_in_the_jobset(tmp_path):
    env = {entry["name"]: entry for entry in pod(manifest(tmp_path, "h100:4x8"))["containers"][0]["env"]}
    # <jobset>-<replicated job>-<job>-<pod>.<jobset>
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == "run7-slice-0-0.run7:8476"
    assert env["JAX_NUM_PROCESSES"]["value"] == "4"
    assert "job-completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_on_skypilot_every_machine_is_one_process_with_the_words_as_they_were_typed(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    known = {"name", "num_nodes", "resources", "envs", "setup", "run"}
    assert set(task) == known
    fake(tmp_path / "venv" / "bin", "iterpref", 'env | grep ^JAX_ | sort >> "$HOME/seen"')
    shown = launch(tmp_path / "fake", "skypilot.sh", "--dry-run", "--", *WORDS).stdout
    script = (
        f'set -- {shown}\nfor word in "$@"; do case "$word" in --env=TRAIN=*) echo "${{word#--env=}}" ;; esac; done'
    )
    train = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    node = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TRAIN": train.strip().removeprefix("TRAIN=")} | node
    subprocess.run(["bash", "-c", task["run"]], env=environment, check=True)
    seen = (tmp_path / "seen").read_text().split()
    assert seen == ["JAX_COORDINATOR_ADDRESS=10.0.0.5:8476", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=1"]
    assert (tmp_path / "venv" / "bin" / "calls").read_text().splitlines() == ["iterpref", "train", *WORDS, "---"]
