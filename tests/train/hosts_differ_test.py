"""Processes that do not fit together are refused at the start, each of them with what differs; failures reach all."""

import pytest

from iterpref_jax.models import hf_checkpoint
from iterpref_jax.models.transformer import init_params
from tests.support.models import model_config
from tests.support.processes import Processes
from tests.support.runs import CONFIG, ROOT, make_dataset, overrides
from tests.train.hosts_run_test import VANISHED_S

pytestmark = pytest.mark.slow

OTHER_CODE = """
from iterpref_jax.train import alike
alike._code = lambda: "another digest"
"""

# One host's copy of the data is that of another build.
OTHER_DATA = """
from iterpref_jax.train import run
open_dataset = run.open_dataset
run.open_dataset = lambda path: open_dataset({path!r})
"""

# One host's copy of the model is that of another training.
OTHER_WEIGHTS = """
from iterpref_jax.train import run
run.resolve = lambda path: {path!r}
"""

FAIL_IN_LOADING = """
from iterpref_jax.errors import UserError
from iterpref_jax.train.run import Run
def load(self):
    raise UserError("this host's disk is broken")
Run.load_params = load
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    return make_dataset(one), make_dataset(other, count=20), one / "cache"


@pytest.fixture
def refused(datasets, tmp_path):
    """Starts two processes, which must both end with status 1; returns what each printed."""

    def refused(code="", config=CONFIG, changes=None, **options):
        fixed = {"rows.rows_per_microbatch": 4, "hosts.vanished_after_s": VANISHED_S, "hosts.start_timeout_s": 60}
        words = ("train", config, f"--workdir={tmp_path / 'run'}", *overrides(datasets[0], **fixed | (changes or {})))
        processes = Processes(2, *words, cache=datasets[2], logs=tmp_path, codes={1: code}, **options)
        assert processes.wait() == [1, 1], processes.text(0) + processes.text(1)
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
        return processes.text(0), processes.text(1)

    return refused


def test_another_configuration_is_named_with_both_values(refused):
    for text in refused(more={1: ["--config.optimizer.learning_rate=0.5"]}):
        assert "config.optimizer.learning_rate: 0.001 (process 0 of 2 on " in text
        assert ", 0.5 (process 1 of 2 on " in text


def test_another_code_is_named(refused):
    for text in refused(OTHER_CODE):
        assert "they differ in\n  code: " in text
        assert "another digest (process 1 of 2 on " in text


def test_other_data_are_named(refused, datasets):
    for text in refused(OTHER_DATA.format(path=str(datasets[1]))):
        assert "they differ in\n  data." in text


def test_a_copy_of_the_model_with_other_weights_is_named(refused, datasets, tmp_path):
    shape = model_config(vocab_size=512, tie_word_embeddings=True)
    for seed in (5, 6):
        hf_checkpoint.save(
            str(tmp_path / f"model-{seed}"),
            shape,
            init_params(shape, seed, "float32"),
            dtype="float32",
            copy_from=str(datasets[0] / "tokenizer"),
            max_shard_gb=0.0001,
        )
    changes = {"model.path": tmp_path / "model-5", "train.epochs": 0.0}
    base = f"--config={ROOT / 'configs' / 'base.py'}"
    for text in refused(OTHER_WEIGHTS.format(path=str(tmp_path / "model-6")), config=base, changes=changes):
        assert "they differ in\n  weights' samples: " in text


def test_a_folder_that_one_host_does_not_see_is_refused(refused, tmp_path):
    shorter = "from iterpref_jax.train import alike\nalike.SEEN_WITHIN_S = 1.0\n"
    for text in refused(shorter, more={1: [f"--workdir={tmp_path / 'elsewhere'}"]}):
        assert " is not one folder for all hosts: process 0 of 2 on " in text
        assert "does not share it with process 1 of 2 on " in text


def test_an_error_of_one_process_ends_the_others_with_its_words(refused):
    first, second = refused(FAIL_IN_LOADING)
    assert "error: process 1 of 2 on " in first
    assert "ended: this host's disk is broken; this process ends too" in first
    assert "iterpref train: error: this host's disk is broken" in second
