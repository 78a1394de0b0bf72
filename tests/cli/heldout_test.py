"""Held-out evaluation of checkpoints and folders against brute force, on one device and on eight; tiny data."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from iterpref_jax import settings
from iterpref_jax.__main__ import main
from iterpref_jax.cli.stored import stored_run
from iterpref_jax.data.groups import groupings
from iterpref_jax.evaluate.held_out import SEGMENTS, SIDES
from iterpref_jax.models.lora import base_of
from iterpref_jax.train import held_out
from iterpref_jax.train.loop import train
from iterpref_jax.train.restore import restore_params
from iterpref_jax.train.run import open_run
from tests.support.brute_force import pair_logps
from tests.support.meshes import placed
from tests.support.runs import CONFIG, make_dataset, overrides


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def run(dataset, workdir, **changes):
    flags = overrides(dataset, **{"train.steps": 2, "rows.rows_per_microbatch": 8, "optimizer.warmup": 0.0} | changes)
    config = settings.load_config(CONFIG.removeprefix("--config="), [f.removeprefix("--config.") for f in flags])
    assert train(open_run(settings.read_run(config), str(workdir)), settings.to_json(config)).finished
    return workdir


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    return run(dataset, tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def evaluated(finished):
    assert main(["heldout", f"--workdir={finished}", f"--out={finished / 'heldout'}"]) == 0
    return finished / "heldout"


def read(folder):
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    return json.loads((folder / "heldout.json").read_text()), pairs


def numbers(pairs):
    return np.array(
        [[row["metrics"][name] for name in sorted(row["metrics"]) if "accuracies" not in name] for row in pairs]
    )


def on_one(tree):
    return jax.tree.map(np.asarray, tree)


def expected_sums(decoder, params, example):
    """[SIDES, SEGMENTS], by the definitions alone."""
    sums = np.zeros((2, 4))
    differs = next(i for i, (a, b) in enumerate(zip(example.chosen_ids, example.rejected_ids, strict=False)) if a != b)
    focuses = (example.chosen_focus, example.rejected_focus)
    for side, (logps, focus) in enumerate(zip(pair_logps(decoder, params, example), focuses, strict=True)):
        for token, logp in enumerate(logps):
            sums[side, (1 if focus[token] else 0) if token < differs else (2 if focus[token] else 3)] += logp
    return sums


def assert_sums(pairs, kind, decoder, params, split):
    for record, row in enumerate(pairs):
        got = [[row["sums"][f"{side}_{segment}"][kind] for segment in SEGMENTS] for side in SIDES]
        np.testing.assert_allclose(got, expected_sums(decoder, params, split[record]), rtol=1e-4, atol=2e-4)


@pytest.mark.slow
def test_sums_of_every_segment_are_those_of_whole_sequences(finished, evaluated):
    content, pairs = read(evaluated)
    opened = stored_run(str(finished))
    assert len(pairs) == len(opened.eval_split) == content["overall"]["pairs"]
    assert_sums(pairs, "logp", opened.decoder, on_one(restore_params(opened, None)[1]), opened.eval_split)
    assert_sums(pairs, "ref_logp", opened.decoder, on_one(opened.load_params()), opened.eval_split)


def test_metrics_follow_from_the_sums(evaluated):
    content, pairs = read(evaluated)
    margins, wrong, focus = [], [], []
    for row in pairs:
        ratio = {name: part["logp"] - part["ref_logp"] for name, part in row["sums"].items()}
        chosen, rejected = (sum(ratio[f"{side}_{segment}"] for segment in SEGMENTS) for side in SIDES)
        margins.append(chosen - rejected)
        wrong.append(chosen - ratio["rejected_shared_focus"] - ratio["rejected_focus"])
        focus.append(ratio["chosen_focus"] - ratio["rejected_focus"])
    values = {name: value["value"] for name, value in content["overall"]["metrics"].items() if value}
    assert values["rewards/margins"] == pytest.approx(0.1 * np.mean(margins))
    assert values["target/margins"] == pytest.approx(0.1 * np.mean(wrong))
    assert values["focus/margins"] == pytest.approx(np.mean(focus))
    assert values["focus/accuracies"] == pytest.approx(np.mean(np.array(focus) > 0))


def test_the_pairs_of_every_grouping_add_up_and_average_to_the_whole(evaluated):
    content, _ = read(evaluated)
    whole = content["overall"]
    for groups in content["groups"].values():
        assert sum(group["pairs"] for group in groups.values()) == whole["pairs"]
        sums = sum(group["pairs"] * group["metrics"]["rewards/margins"]["value"] for group in groups.values())
        assert sums / whole["pairs"] == pytest.approx(whole["metrics"]["rewards/margins"]["value"])
    assert set(content["groups"]["error_type"]) == {"NameError", "AssertionError"}


def test_the_table_shows_every_group(evaluated):
    text = (evaluated / "heldout.md").read_text()
    assert "| AssertionError | " in text
    assert "| chosen_focus | " in text


def test_one_device_gives_the_numbers_of_eight(finished, evaluated, tmp_path, monkeypatch):
    from iterpref_jax.train import run as runs

    alone = placed(fsdp=1)
    monkeypatch.setattr(runs, "Placement", lambda mesh: alone)
    assert main(["heldout", f"--workdir={finished}", f"--out={tmp_path}"]) == 0
    np.testing.assert_allclose(numbers(read(tmp_path)[1]), numbers(read(evaluated)[1]), rtol=1e-4, atol=2e-4)


@pytest.mark.slow
def test_a_folder_is_evaluated_against_the_configs_model_like_the_checkpoint_that_it_was_exported_from(
    dataset, finished, evaluated, tmp_path
):
    assert main(["export", f"--workdir={finished}", f"--out={tmp_path / 'policy'}"]) == 0
    # A run that changes nothing exports what the other one started from.
    still = run(
        dataset, tmp_path / "still", **{"optimizer.learning_rate": 1e-30, "train.steps": 1, "train.eval_every": 0}
    )
    assert main(["export", f"--workdir={still}", f"--out={tmp_path / 'start'}"]) == 0
    flags = [CONFIG.removesuffix(":tiny"), f"--config.model.path={tmp_path / 'start'}", f"--config.data.path={dataset}"]
    flags += ["--config.model.compute.compute_dtype=float32", "--config.rows.rows_per_microbatch=8"]
    assert main(["heldout", f"--model={tmp_path / 'policy'}", *flags, f"--out={tmp_path / 'out'}"]) == 0
    np.testing.assert_allclose(numbers(read(tmp_path / "out")[1]), numbers(read(evaluated)[1]), rtol=1e-4, atol=2e-4)


@pytest.mark.slow
def test_adapters_are_evaluated_against_their_base(dataset, tmp_path):
    adapted = run(dataset, tmp_path / "run", **{"model.lora.rank": 2, "optimizer.learning_rate": 0.01})
    assert main(["heldout", f"--workdir={adapted}", f"--out={tmp_path / 'out'}"]) == 0
    opened = stored_run(str(adapted))
    base = dataclasses.replace(opened.decoder, lora=opened.decoder.lora.switched_off())
    content, pairs = read(tmp_path / "out")
    assert_sums(pairs, "logp", opened.decoder, on_one(restore_params(opened, None)[1]), opened.eval_split)
    assert_sums(pairs, "ref_logp", base, on_one(base_of(opened.load_params())), opened.eval_split)
    assert abs(content["overall"]["metrics"]["rewards/chosen"]["value"]) > 1e-3


def test_metrics_of_groups_during_training_are_means_over_their_pairs(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "eval"][-1]
    opened = open_run(
        settings.read_run(settings.from_json(json.loads((finished / "config.json").read_text()))), str(finished)
    )
    split, params = opened.eval_split, on_one(restore_params(opened, None)[1])
    initial, margins = on_one(opened.load_params()), []
    for record in range(len(split)):
        policy, reference = (expected_sums(opened.decoder, each, split[record]) for each in (params, initial))
        ratio = policy - reference
        margins.append(0.1 * (ratio[0].sum() - ratio[1, 1:3].sum()))
    groups = groupings(split.index, [split[i].error_type for i in range(len(split))], most=held_out.ERROR_TYPES)
    for grouping in held_out.GROUPED_BY:
        for number, name in enumerate(groups[grouping].names):
            inside = groups[grouping].number == number
            assert last[f"{grouping}/{name}/pairs"] == inside.sum()
            expected = np.mean(np.array(margins)[inside])
            assert last[f"{grouping}/{name}/rewards/margins"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert last["rewards/margins"] == pytest.approx(np.mean(margins), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out=x"], "give --workdir=RUN"),
        (["--out=x", "--model=m"], "--model needs --config"),
        (["--out=x", "--workdir=w", "--config=c"], "--config has no effect with --workdir"),
        (["--out=x", "--model=m", "--config=configs/base.py", "--step=3"], "--step is a checkpoint of a run"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, message, capsys):
    assert main(["heldout", *words]) == 1
    assert message in capsys.readouterr().err


def test_data_without_held_out_pairs_is_refused(finished, tmp_path, capsys):
    whole = make_dataset(tmp_path, eval_fraction=0.0)
    words = [f"--workdir={finished}", f"--out={tmp_path / 'out'}", f"--config.data.path={whole}"]
    assert main(["heldout", *words]) == 1
    assert "has no held-out pairs" in capsys.readouterr().err
