"""What a run's folder holds already: how much room its checkpoints still need, and whether they are of this run."""

import dataclasses
import json

import pytest

from iterpref_jax import settings
from iterpref_jax.cli.stored import to_store
from iterpref_jax.doctor.examination import Examination, Subject
from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.transformer import init_params
from tests.support.models import model_config
from tests.support.runs import CONFIG


@pytest.mark.parametrize(
    ("there", "best", "counted"), [((), "", 3), ((), "rewards/accuracies", 4), ((2,), "", 2), ((2, 4, 6), "", 1)]
)
def test_checkpoints_that_are_there_need_no_more_room(tmp_path, there, best, counted):
    shape = model_config()
    model = str(tmp_path / "model")
    hf_checkpoint.save(model, shape, init_params(shape, 0, "float32"), dtype="float32", copy_from=None, max_shard_gb=1)
    subject = opened(tmp_path, there, **{"model.path": model, "train.keep_checkpoints": 2, "train.keep_best": best})
    one = Examination(dataclasses.replace(subject, workdir=str(tmp_path / "none")))._checkpoint_bytes() // (
        3 + bool(best)
    )
    assert one > 0
    assert Examination(subject)._checkpoint_bytes() == counted * one


def opened(folder, there, **changes):
    """A subject whose folder holds checkpoints of these steps, and the configuration that `train` left there."""
    config = settings.load_config(CONFIG.removeprefix("--config="), ["data.path=none"])
    with config.unlocked():
        config.model.init = {}
        config.update_from_flattened_dict({"model.path": "model"} | changes)
    for step in there:
        (folder / "run" / "checkpoints" / str(step)).mkdir(parents=True)
        (folder / "run" / "config.json").write_text(json.dumps(to_store(config)))
    return Subject(
        settings=settings.read_run(config),
        config=to_store(config),
        workdir=str(folder / "run"),
        has_data=True,
        has_model=True,
    )


def findings(subject):
    examination = Examination(subject)
    examination._look("workdir", examination._same_run)
    return [(one.status, one.text) for one in examination.findings]


def test_a_folder_of_another_run_is_found(tmp_path):
    subject = opened(tmp_path, (2, 4))
    assert findings(subject) == [("OK", "holds this run up to update 4")]
    other = opened(tmp_path / "other", (), **{"optimizer.learning_rate": 3.0, "train.checkpoint_every": 7})
    (status, text), *more = findings(dataclasses.replace(other, workdir=subject.workdir))
    assert (status, more) == ("FAIL", [])
    assert "holds a run with another configuration:\n  optimizer.learning_rate: was" in text
    assert "train.checkpoint_every" not in text


@pytest.mark.parametrize("lacks", ["has_data", "has_model", "checkpoints"])
def test_what_is_no_run_yet_is_compared_with_none(tmp_path, lacks):
    subject = opened(tmp_path, () if lacks == "checkpoints" else (2,))
    if lacks != "checkpoints":
        subject = dataclasses.replace(subject, config={}, **{lacks: False})
    assert not findings(subject)
