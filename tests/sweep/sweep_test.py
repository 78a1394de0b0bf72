"""A real sweep of two variants and two seeds: killed, resumed, changed, and its table."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.runs import ROOT, environment, make_dataset, run_cli

pytestmark = pytest.mark.slow

SWEEP = """
import ml_collections


def get_config(arg=""):
    sweep = ml_collections.ConfigDict()
    sweep.config = "{config}:tiny"
    sweep.overrides = {overrides}
    sweep.variants = (
        {{"name": "sft", "overrides": ("objective.recipe=sft",)}},
        {{"name": "target_rpo", "overrides": ("build.pairs.choose=last", {more})}},
    )
    sweep.seeds = (0, 1)
    sweep.commands = ()
    return sweep
"""


def write_sweep(folder, more=""):
    common = {
        "build.text.tokenizer": folder / "tokenizer", "build.text.template": "raw", "build.eval_fraction": 0.3,
        "rows.tokens": 512, "rows.rows_per_microbatch": 1, "train.global_batch": 4, "train.steps": 2,
        "train.checkpoint_every": 1, "train.eval_every": 0, "build.workers": 0, "build.pairs.choose": "all",
        "model.compute.logits_mb": 64,
    }  # fmt: skip
    words = tuple(f"{name}={value}" for name, value in common.items())
    (folder / "files" / "made").mkdir(parents=True, exist_ok=True)
    file = folder / "files" / "made" / "tiny.py"
    config = ROOT / "configs" / "target_rpo_qwen2_5_coder_7b.py"
    file.write_text(SWEEP.format(config=config, overrides=words, more=more))
    return f"--config={file}"


def words(folder, config):
    return ["sweep", config, f"--input={folder / 'trajectories.jsonl'}", f"--workdir={folder / 'sweep'}"]


def updates(run):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["step"] for line in lines if line["split"] == "train"]


def start_and_kill(folder, config, number):
    """Starts the sweep and ends it in the middle of the first run, by a signal to it alone."""
    command = [sys.executable, "-m", "iterpref_jax", *words(folder, config)]
    run = folder / "sweep" / "runs" / "sft" / "seed-0"
    with (folder / "killed.log").open("w") as log:
        child = subprocess.Popen(command, env=environment(folder / "cache"), stderr=log, stdout=log, cwd=ROOT)
    end = time.monotonic() + 300
    while not updates(run):
        assert child.poll() is None, (folder / "killed.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(child.pid, number)
    return child.wait(), run


def test_a_sweep_that_is_told_to_end_saves_first_and_says_how_to_go_on(tmp_path):
    make_dataset(tmp_path)
    config = write_sweep(tmp_path)
    status, run = start_and_kill(tmp_path, config, signal.SIGTERM)
    assert status == 130
    assert "stopped; the same command goes on" in (tmp_path / "killed.log").read_text()
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    run_cli(*words(tmp_path, config), "--only=sft/0", cache=tmp_path / "cache")
    assert updates(run) == [1, 2]
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert results["unfinished"] == ["sft/seed-1", "target_rpo/seed-0", "target_rpo/seed-1"]


def test_a_sweep_that_is_killed_goes_on_to_one_table_and_runs_nothing_twice(tmp_path):
    make_dataset(tmp_path)
    config = write_sweep(tmp_path)
    status, run = start_and_kill(tmp_path, config, signal.SIGKILL)
    assert status == -signal.SIGKILL
    before = json.loads((run / "sweep.json").read_text())["steps"]
    done = run_cli(*words(tmp_path, config), cache=tmp_path / "cache")
    assert updates(run) == [1, 2]
    assert set(before) <= {"train"}
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert results["unfinished"] == []
    assert [found["metrics"]["focus/margins"]["seeds"] for found in results["variants"].values()] == [2, 2]
    # Evaluated on the pairs of the first variant, though trained on others.
    pairs = [len((tmp_path / "sweep" / "runs" / v / "seed-1" / "heldout" / "pairs.jsonl").read_text().splitlines())
             for v in ("sft", "target_rpo")]  # fmt: skip
    assert pairs[0] == pairs[1] > 0
    assert len(list((tmp_path / "sweep" / "data").iterdir())) == 2
    table = (tmp_path / "sweep" / "table.md").read_text()
    assert "| target_rpo | " in table.split("## Difference from `sft`")[1]
    assert (tmp_path / "sweep" / "focus_accuracies.svg").exists()
    assert "table: " in done.stderr

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "runs").rglob("*") if path.is_file()}
    run_cli(*words(tmp_path, config), "--baseline=target_rpo", cache=tmp_path / "cache")
    table = (tmp_path / "sweep" / "table.md").read_text()
    assert "| sft | " in table.split("## Difference from `target_rpo`")[1]
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    changed = write_sweep(tmp_path, more='"objective.link.beta=0.3",')
    refused = run_cli(*words(tmp_path, changed), cache=tmp_path / "cache", check=False)
    assert refused.returncode == 1
    assert "objective.link.beta: was 0.1, is 0.3" in refused.stderr


def test_a_run_that_fails_is_named_with_the_end_of_its_log_and_the_others_run(tmp_path):
    make_dataset(tmp_path)
    config = write_sweep(tmp_path, more='"optimizer.learning_rate=1e30","optimizer.schedule=constant",')
    failed = run_cli(
        *words(tmp_path, config), "--only=sft/0", "--only=target_rpo/0", cache=tmp_path / "cache", check=False
    )
    assert failed.returncode == 1
    assert "1 of 2 runs failed (target_rpo/seed-0)" in failed.stderr
    assert "nothing was saved after it" in failed.stderr
    table = (tmp_path / "sweep" / "table.md").read_text()
    assert "Not finished: sft/seed-1, target_rpo/seed-0, target_rpo/seed-1." in table
