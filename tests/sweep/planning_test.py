"""What a sweep refuses before it runs anything."""

import dataclasses

import pytest

from iterpref_jax.__main__ import main
from iterpref_jax.cli import sweep as command_line
from iterpref_jax.errors import UserError
from iterpref_jax.sweep.settings import SweepSettings, Variant
from tests.support.runs import ROOT, make_dataset

SWEEPS = ROOT / "configs" / "sweeps"


def sweep(*words, tmp_path):
    return main(["sweep", f"--workdir={tmp_path}", *words])


def settings(**changes):
    known = {"config": "c.py", "overrides": (), "commands": (), "seeds": (0,)}
    return SweepSettings(**known | {"variants": tuple(Variant(name=n, overrides=()) for n in "ab")} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "different seeds"),
        ({"seeds": (1, 1)}, "different seeds"),
        ({"variants": (Variant(name="a", overrides=()),)}, "at least two variants"),
        ({"variants": (Variant(name="a", overrides=()),) * 2}, "different names"),
    ],
)
def test_a_sweep_needs_variants_and_seeds(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)


@pytest.mark.parametrize("word", ["seed=3", "build.eval_fraction=0.5", "build.seed=1"])
def test_a_variant_that_holds_other_tasks_out_is_refused(word):
    with pytest.raises(UserError, match="hold the same tasks out"):
        Variant(name="a", overrides=(word,))


def planned(folder, *commands, given=("data.path=d",)):
    """The last step of the first run of a sweep with these commands."""
    planner = command_line.make_planner(f"{SWEEPS / 'beta.py'}:tiny", str(folder), [], given)
    sweep = dataclasses.replace(planner.sweep, commands=commands)
    return dataclasses.replace(planner, sweep=sweep).jobs()[0].steps[-1]


def test_braces_of_a_command_are_filled_in_or_written_twice(tmp_path):
    step = planned(tmp_path, "iterpref eval --workdir={run} '--x={{\"a\": 1}}'")
    name, workdir, given = step.words
    assert (name, given) == ("eval", '--x={"a": 1}')
    assert workdir.startswith(f"--workdir={tmp_path}/runs/")


def test_overrides_reach_the_commands_that_read_them(tmp_path):
    given = ["data.path=d", "evaluate.temperature=0.8", "train.steps=3"]
    step = planned(tmp_path, "eval --config={config} --config.evaluate.temperature=0", "--help", given=given)
    assert step.words == ("--help",)
    step = planned(tmp_path, "eval --config={config} --config.evaluate.n=2", given=given)
    assert step.words[2:] == ("--config.evaluate.temperature=0.8", "--config.evaluate.n=2")


def test_a_given_dataset_is_known_by_its_content(tmp_path):
    data = make_dataset(tmp_path / "one")
    planner = command_line.make_planner(f"{SWEEPS / 'beta.py'}:tiny", str(tmp_path), [], [f"data.path={data}"])
    [known] = {job.identity["dataset"] for job in planner.jobs()}
    make_dataset(tmp_path / "two", count=20)
    (tmp_path / "two" / "data").rename(tmp_path / "moved")
    for path, same in ((tmp_path / "moved", False), (data, True)):
        planner = command_line.make_planner(f"{SWEEPS / 'beta.py'}:tiny", str(tmp_path), [], [f"data.path={path}"])
        assert (planner.jobs()[0].identity["dataset"] == known) == same


@pytest.mark.parametrize(
    "command",
    [
        "eval --seed={seed}",
        "eval --x={}",
        """eval '--x={"a":1}'""",
        "eval --x={",
        "eval 'x",
        "eval {run.x}",
        "eval {run:5}",
    ],
)
def test_a_command_that_cannot_be_read_is_refused_by_its_name(command, tmp_path):
    with pytest.raises(
        UserError, match=r"sweep\.commands\[1\], .* cannot be read \(.*\): .*\{run\}, \{config\} and"
    ) as error:
        planned(tmp_path, "eval", command)
    assert repr(command) in str(error.value)


def test_a_variant_whose_name_is_no_folder_is_refused():
    with pytest.raises(UserError, match="it names a folder"):
        Variant(name="../a", overrides=())


def test_variants_with_datasets_of_their_own_need_input(tmp_path, capsys):
    assert sweep(f"--config={SWEEPS}/negatives.py", "--config.data.path=somewhere", tmp_path=tmp_path) == 1
    assert "has a dataset of its own (build.pairs.choose=first): give --input=FILE" in capsys.readouterr().err


def test_a_missing_named_input_is_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("")
    assert sweep(f"--config={SWEEPS}/sampling.py", f"--input=debuging={tmp_path}/a.jsonl", tmp_path=tmp_path) == 1
    assert "needs --input=debugging=FILE; there is debuging; did you mean 'debuging'?" in capsys.readouterr().err


def test_a_dataset_beside_input_has_no_effect(tmp_path, capsys):
    words = [f"--config={SWEEPS}/beta.py", "--config.data.path=d", f"--input={tmp_path}"]
    assert sweep(*words, tmp_path=tmp_path) == 1
    assert "--config.data.path has no effect with --input" in capsys.readouterr().err


def test_an_unknown_run_of_only_gets_the_closest(tmp_path, capsys):
    words = [f"--config={SWEEPS}/beta.py", "--config.data.path=d", "--only=beta=0.3"]
    assert sweep(*words, tmp_path=tmp_path) == 1
    assert "there is no such variant or run; did you mean 'beta=0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--baseline=beta=0.3"], "--baseline=beta=0.3: there is no such variant; did you mean 'beta=0."),
        (["--baseline=beta=0.5", "--print-jobs"], "--baseline has no effect with --print-jobs"),
    ],
)
def test_a_baseline_that_cannot_be_one_is_refused(tmp_path, capsys, more, told):
    assert sweep(f"--config={SWEEPS}/beta.py", "--config.data.path=d", *more, tmp_path=tmp_path) == 1
    assert told in capsys.readouterr().err


def test_printed_jobs_are_commands_and_nothing_is_run(tmp_path, capsys):
    words = [f"--config={SWEEPS}/beta.py:seeds=1", "--config.data.path=d", "--only=beta=0.5/0", "--print-jobs"]
    assert sweep(*words, tmp_path=tmp_path / "sweep") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    train, heldout = lines[0].split(" && ")
    assert train.startswith("iterpref train ")
    assert "--config.objective.link.beta=0.5 --config.seed=0" in train
    assert heldout.startswith("iterpref heldout --workdir=")
    assert not (tmp_path / "sweep").exists()


def test_an_override_that_the_config_refuses_names_the_variant(tmp_path, capsys):
    words = [f"--config={SWEEPS}/alpha.py", "--config.data.path=d", "--config.objective.recipe=dpo"]
    assert sweep(*words, tmp_path=tmp_path) == 1
    assert "variant 'alpha=1.0': objective.alpha = 1.0 has no effect" in capsys.readouterr().err
