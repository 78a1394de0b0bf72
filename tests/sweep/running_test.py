"""What a sweep remembers of its runs, without training: other data, and commands that were put right."""

import dataclasses
import json

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.sweep import running
from iterpref_jax.sweep.planning import Job, Step


def job(folder, *words, **identity):
    return Job("a", 0, folder, (Step("command-0", words),), {"dataset": "d", **identity})


def test_a_command_that_was_put_right_runs_again_and_keeps_what_the_wrong_one_left(tmp_path):
    first, second = job(tmp_path, "--help"), job(tmp_path, "show", "--help")
    assert running.run([first]) == ({}, True)
    assert running.is_finished(first)
    (tmp_path / "command-0").mkdir()
    running.check([second])
    assert not running.is_finished(second)
    assert running.run([second]) == ({}, True)
    assert running.is_finished(second)
    assert (tmp_path / "command-0.old-1").is_dir()
    assert not (tmp_path / "command-0").exists()


def test_results_of_another_dataset_or_model_are_refused(tmp_path):
    running.run([job(tmp_path, "--help", **{"model.path": "m"})])
    for changes, said in (({"dataset": "e"}, "dataset: was 'd', is 'e'"), ({"model.path": "n"}, "model.path: was 'm'")):
        with pytest.raises(UserError, match=said):
            running.check([job(tmp_path, "--help", **({"model.path": "m"} | changes))])


def test_what_an_older_version_did_not_write_down_is_no_difference(tmp_path):
    made = dataclasses.replace(job(tmp_path, "--help"), identity={"dataset": "d", "commands": ["eval"]})
    running.run([made])
    state = json.loads((tmp_path / running.STATE_FILE).read_text())
    del state["words"]
    (tmp_path / running.STATE_FILE).write_text(json.dumps(state))
    running.check([job(tmp_path, "--help", **{"model.path": "m"})])
    assert running.is_finished(job(tmp_path, "show", "--help"))
