"""Steps of a run: those of a dataset are the ones that training will see."""

import pytest

from iterpref_jax import settings
from iterpref_jax.data.layout import costs
from iterpref_jax.data.packing import training_plan
from iterpref_jax.data.schema import open_dataset
from iterpref_jax.errors import UserError
from iterpref_jax.plan.settings import PairLengths
from iterpref_jax.plan.workload import dataset_workload, made_workload
from tests.support.runs import CONFIG, make_dataset, overrides


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def read(dataset, **changes):
    given = [word.removeprefix("--config.") for word in overrides(dataset, **changes)]
    return settings.read_run(settings.load_config(CONFIG.removeprefix("--config="), given))


def test_the_steps_of_a_dataset_are_those_of_training(dataset):
    run, split = read(dataset), open_dataset(dataset).split("train")
    load = dataset_workload(run, split, str(dataset), None)
    train = run.train
    plan = training_plan(
        costs(split.index, run.rows, run.weighting),
        run.rows,
        global_batch=train.global_batch,
        epochs=train.epochs,
        steps=train.steps,
        seed=run.seed,
        multiple=1,
    )
    assert load.caps == plan.caps
    assert load.microbatches == plan.microbatches
    assert load.rows == sum(len(plan.rows(step)) for step in range(plan.steps)) / plan.steps
    assert load.sample.pairs == train.global_batch
    assert load.pairs == len(split)


def test_larger_microbatches_hold_the_same_rows_in_fewer(dataset):
    whole = {"rows.lengths": 0}
    load = dataset_workload(read(dataset, **whole), open_dataset(dataset).split("train"), str(dataset), None)
    more = load.with_settings(read(dataset, **whole, **{"rows.rows_per_microbatch": 4}))
    assert more.microbatches == -(-load.microbatches // 4)
    assert more.rows == load.rows


LENGTHS = dict(prompt=40, completion=60, common=20, focus_end=40, focus=5)


@pytest.mark.parametrize("wrong", [{"prompt": 0}, {"common": 60}, {"focus_end": 3}, {"focus_end": 61}])
def test_lengths_that_no_pair_can_have_are_refused(wrong):
    with pytest.raises(UserError, match=r"plan\.pair"):
        PairLengths(**LENGTHS | wrong)


def test_an_epoch_smaller_than_a_batch_is_refused(dataset):
    with pytest.raises(UserError, match="the epoch has 3"):
        made_workload(read(dataset), PairLengths(**LENGTHS), 3)
