"""The model that `sample`, `serve` and `eval` run, opened from a run's folder or a model's."""

import argparse
import contextlib
import json

import jax
import jax.numpy as jnp
import pytest

from iterpref_jax import settings
from iterpref_jax.cli import model
from iterpref_jax.errors import UserError
from iterpref_jax.models.lora import parted
from iterpref_jax.train.checkpoint import Checkpoints
from iterpref_jax.train.run import open_run
from iterpref_jax.train.step import TrainState
from tests.support.runs import CONFIG, make_dataset, overrides

SPEC = CONFIG.removeprefix("--config=")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    return saved_run(dataset, tmp_path_factory.mktemp("run"))


def saved_run(dataset, folder, **changes):
    """What a run leaves behind, without its training: config.json and a checkpoint of step 1."""
    config = settings.load_config(SPEC, [flag.removeprefix("--config.") for flag in overrides(dataset, **changes)])
    run, stored = open_run(settings.read_run(config), str(folder), training=False), settings.to_json(config)
    state = TrainState(jnp.int32(1), parted(run.load_params())[0], {}, {})
    with contextlib.closing(Checkpoints(str(folder / "checkpoints"), keep=1, writing=True)) as checkpoints:
        checkpoints.save(1, state, {"config": stored, "fingerprint": run.fingerprint})
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def opened(workdir, *words):
    chosen = argparse.Namespace(config=SPEC, model="", workdir=str(workdir), step=None)
    config = model.load_config(chosen, list(words))
    return model.open_model(chosen, config, list(words))


def test_a_run_is_computed_as_its_own_config_says_and_otherwise_as_the_words_of_the_command_say(workdir):
    own = opened(workdir, "decode.slots=3").decoder
    assert own.compute.compute_dtype == "float32"
    assert own.placement.mesh.shape["fsdp"] == jax.device_count()
    other = opened(workdir, "model.compute.compute_dtype=bfloat16", "mesh.fsdp=4", "mesh.tensor=2").decoder
    assert other.compute.compute_dtype == "bfloat16"
    assert (other.placement.mesh.shape["fsdp"], other.placement.mesh.shape["tensor"]) == (4, 2)


def test_words_that_would_make_another_model_of_a_run_are_refused_by_name(workdir):
    with pytest.raises(UserError, match=r"--config.model.lora.rank=4 has no effect with --workdir"):
        opened(workdir, "model.lora.rank=4")
