"""Whole runs: the best checkpoint, state in other dtypes on resume, a damaged newest checkpoint."""

import shutil

import pytest

from iterpref_jax import settings
from iterpref_jax.errors import UserError
from iterpref_jax.train.metrics import read_metrics
from iterpref_jax.train.run import open_run
from tests.support.runs import CONFIG, make_dataset, numbers, overrides, run_cli

SHORT = {"train.steps": 4, "train.checkpoint_every": 1, "train.eval_every": 1}


class Runs:
    """Runs of one dataset with one compilation cache; each returns what it printed."""

    def __init__(self, folder):
        self.dataset, self.cache = make_dataset(folder), folder / "cache"

    def __call__(self, workdir, *, fails=False, **changes):
        words = overrides(self.dataset, **SHORT | changes)
        done = run_cli("train", CONFIG, f"--workdir={workdir}", *words, cache=self.cache, check=False)
        assert (done.returncode == 1) == fails, done.stderr
        return done.stderr

    def export(self, workdir, out, *words):
        return run_cli("export", f"--workdir={workdir}", f"--out={out}", *words, cache=self.cache, check=False).stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def held_out(workdir):
    lines = read_metrics(workdir / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if line["split"] == "eval" and line["step"]}


@pytest.mark.slow
def test_a_run_keeps_its_best_checkpoint_through_a_restart_and_exports_it_by_that_name(run, tmp_path):
    # The loss falls: of 'more is better' the first checkpoint is the best.
    best = {"train.keep_best": "+loss", "train.keep_checkpoints": 1}
    workdir = tmp_path / "run"
    run(workdir, **best)
    losses = held_out(workdir)
    first = max(losses, key=lambda step: losses[step])
    assert first < 3
    assert steps(workdir) == [first, 4]
    assert f"step {first} as a Hugging Face folder" in run.export(workdir, tmp_path / "best", "--step=best")
    # A restart knows the best of before from metrics.jsonl, and saves the newest anew.
    shutil.rmtree(workdir / "checkpoints" / "4")
    run(workdir, **best)
    assert held_out(workdir) == losses
    assert steps(workdir) == [first, 4]


@pytest.mark.slow
def test_a_metric_that_does_not_exist_ends_the_run_before_its_first_update(run, tmp_path):
    errors = run(tmp_path, fails=True, **{"train.keep_best": "+focus/acuracies"})
    assert "gives no 'focus/acuracies'; did you mean 'focus/accuracies'?; it gives entropy, error_type/" in errors
    assert not numbers(tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_with_moments_in_bfloat16_and_exports_in_another_dtype(run, tmp_path):
    workdir = tmp_path / "run"
    run(workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    expected = held_out(workdir)[4]
    assert "and others change float32 -> bfloat16" in run(workdir, **{"optimizer.state_dtype": "bfloat16"})
    assert held_out(workdir)[4] == pytest.approx(expected, rel=1e-3)
    assert "kept no best checkpoint" in run.export(workdir, tmp_path / "none", "--step=best")
    assert "step 3 as" in run.export(workdir, tmp_path / "half", "--step=3", "--dtype=bfloat16")


@pytest.mark.slow
def test_a_run_with_a_damaged_newest_checkpoint_stops_and_goes_on_once_it_was_moved_away(run, tmp_path):
    workdir = tmp_path / "run"
    run(workdir)
    expected = numbers(workdir)
    for path in (workdir / "checkpoints" / "4").glob("state/ocdbt.process_0/d/*"):
        data = bytearray(path.read_bytes())
        data[100::1000] = bytes(255 - byte for byte in data[100::1000])
        path.write_bytes(data)
    for command, errors in (("train", run(workdir, fails=True)), ("export", run.export(workdir, tmp_path / "out"))):
        # Around it may stand what TensorStore prints of reads that were under way when the first one failed.
        (said,) = (line for line in errors.splitlines() if line.startswith(f"iterpref {command}: error: "))
        assert said.endswith(f"move {workdir / 'checkpoints' / '4'} away to go on from step 3")
    assert steps(workdir) == [3, 4]
    assert not (tmp_path / "out").exists()
    shutil.move(workdir / "checkpoints" / "4", tmp_path / "damaged")
    run(workdir)
    assert numbers(workdir) == expected


def opened(dataset, **changes):
    words = [flag.removeprefix("--config.") for flag in overrides(dataset, **{"rows.rows_per_microbatch": 8} | changes)]
    config = settings.load_config(CONFIG.removeprefix("--config="), words)
    return open_run(settings.read_run(config), "unused")


def test_the_best_needs_an_evaluation_of_every_checkpoint():
    with pytest.raises(UserError, match=r"train\.checkpoint_every is 3, make it a multiple of train\.eval_every.* 2"):
        opened("unused", **{"train.keep_best": "loss", "train.checkpoint_every": 3, "train.eval_every": 2})


def test_the_best_needs_held_out_pairs(tmp_path):
    dataset = make_dataset(tmp_path, eval_fraction=0.0)
    with pytest.raises(UserError, match=r"train\.keep_best has no effect: .* has no held-out pairs"):
        opened(dataset, **{"train.keep_best": "loss", "train.eval_every": 1})


def test_a_bucket_that_checkpoints_cannot_be_written_to_is_refused(run):
    config = settings.load_config(CONFIG.removeprefix("--config="), [f"data.path={run.dataset}"])
    with pytest.raises(UserError, match=r"--workdir=s3://bucket/run: checkpoints are written to local or mounted"):
        open_run(settings.read_run(config), "s3://bucket/run")


@pytest.mark.slow
def test_a_run_that_never_evaluates_does_so_neither_first_nor_last(run, tmp_path):
    run(tmp_path, **{"train.eval_every": 0})
    splits = {line["split"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert "train" in splits
    assert "eval" not in splits
