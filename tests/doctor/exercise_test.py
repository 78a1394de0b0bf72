"""The small step and the sums that the doctor runs: well on any mesh, and wrong numbers are found."""

import jax
import pytest

from iterpref_jax import settings
from iterpref_jax.doctor import exercise
from iterpref_jax.doctor.finding import FAIL, OK
from tests.support.meshes import placed
from tests.support.runs import ROOT


@pytest.fixture(scope="module")
def recipe():
    config = settings.load_config(f"{ROOT}/configs/base.py")
    config.data.path, config.model.init.model_type = "none", "qwen3"
    run = settings.read_run(config)
    return exercise.Recipe(compute=run.model.compute, objective=run.objective, optimizer=run.optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [dict(fsdp=2, tensor=2), dict(sequence=2, expert=2)], ids=str)
def test_the_step_is_well_on_meshes_of_all_axes(sizes, recipe):
    [finding] = exercise.check_step(recipe, placed(**sizes))
    assert finding.status == OK, finding.text


@pytest.mark.parametrize(
    ("loss", "norm", "text"),
    [(1.1, 1.0, "1.0000 on one device alone"), (float("nan"), 1.0, "nan"), (1.0, 0.0, "norm 0.0")],
)
def test_devices_that_compute_something_else_or_nothing_are_found(loss, norm, text, recipe, monkeypatch):
    monkeypatch.setattr(exercise, "_update", lambda recipe, placement: (0.0, loss, norm))
    monkeypatch.setattr(exercise, "_loss_alone", lambda recipe, placement: 1.0)
    [finding] = exercise.check_step(recipe, placed(fsdp=2))
    assert finding.status == FAIL
    assert text in finding.text


def test_sums_over_all_devices_come_out_right_and_are_timed():
    [finding] = exercise.check_collectives(placed(fsdp=4, tensor=2))
    assert finding.status == OK
    assert "sum over 8 devices of 1 process" in finding.text


def test_a_sum_that_comes_out_wrong_is_found(monkeypatch):
    real = exercise._sum_over_devices

    def wrong(placement, numbers):
        found = real(placement, numbers)
        return exercise._Sum(found.value + (numbers > 1), found.bytes, found.seconds)

    monkeypatch.setattr(exercise, "_sum_over_devices", wrong)
    [finding] = exercise.check_collectives(placed(fsdp=2))
    assert (finding.status, "came out as 3 and 4" in finding.text) == (FAIL, True)


def test_the_doctors_rows_use_all_of_their_targets():
    batch = exercise._batch(2, 128)
    assert batch.tokens_RT.shape == (1, 2, 128)
    assert (batch.weight_RE == 1).all()
    assert abs(float(batch.nll_weight_RE[0, 0].sum()) - 1) < 1e-6
    assert jax.tree.leaves(batch)[3].max() < 128
