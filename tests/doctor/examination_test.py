"""How much room a run's checkpoints still need."""

import dataclasses

import pytest

from iterpref_jax import settings
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
    config = settings.load_config(CONFIG.removeprefix("--config="), ["data.path=none", f"model.path={model}"])
    with config.unlocked():
        config.model.init = {}
    config.train.keep_checkpoints, config.train.keep_best = 2, best
    for step in there:
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
    subject = Subject(settings=settings.read_run(config), workdir=str(tmp_path / "run"), has_data=True, has_model=True)
    one = Examination(dataclasses.replace(subject, workdir=str(tmp_path / "none")))._checkpoint_bytes() // (
        3 + bool(best)
    )
    assert one > 0
    assert Examination(subject)._checkpoint_bytes() == counted * one
