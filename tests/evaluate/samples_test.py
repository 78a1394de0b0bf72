"""The folder of a run: who may work in it, and what a row that cannot be read is called."""

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import samples


def test_a_folder_without_a_run_cannot_be_judged_anew(tmp_path):
    with (
        pytest.raises(UserError, match="holds no samples to judge: run the command without --score-only first"),
        samples.alone(tmp_path / "new", rescore=True),
    ):
        pass
    assert not (tmp_path / "new").exists()


def test_a_second_run_of_a_folder_is_kept_out(tmp_path):
    with (
        samples.alone(tmp_path, rescore=False),
        pytest.raises(UserError, match="another `iterpref eval` works here"),
        samples.alone(tmp_path, rescore=False),
    ):
        pass
    with samples.alone(tmp_path, rescore=False):
        pass


def test_a_row_that_is_no_json_is_named(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"task_id"\n{"task')
    with pytest.raises(UserError, match=r"samples\.jsonl, line 1: no JSON"):
        samples.read_samples(tmp_path)
