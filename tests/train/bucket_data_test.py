"""Records in a bucket: everything of a run that reads them, its tokenizer too."""

import shutil

from tests.support.buckets import stand_in
from tests.support.runs import CONFIG, make_dataset, overrides, run_cli

MISSING = "import sys\nsys.modules['gcsfs'] = None"


def test_a_run_on_records_in_a_bucket_trains_exports_and_samples(tmp_path):
    (tmp_path / "bucket").mkdir()
    shutil.move(make_dataset(tmp_path), tmp_path / "bucket" / "data")
    words = overrides("gs://bucket/data", **{"train.steps": 1, "train.checkpoint_every": 1})
    run, bucket = f"--workdir={tmp_path / 'run'}", stand_in(tmp_path)
    assert "update" in run_cli("train", CONFIG, run, *words, cache=tmp_path, code=bucket).stderr
    run_cli("export", run, f"--out={tmp_path / 'model'}", cache=tmp_path, code=bucket)
    assert (tmp_path / "model" / "tokenizer.json").exists()
    run_cli("show", "gs://bucket/data", cache=tmp_path, code=bucket)


def test_a_bucket_whose_package_is_missing_is_named(tmp_path):
    words = overrides("gs://bucket/data")
    done = run_cli("train", CONFIG, f"--workdir={tmp_path / 'run'}", *words, cache=tmp_path, code=MISSING, check=False)
    assert done.returncode == 1
    assert "gs://bucket/data needs a package: pip install 'iterpref_jax[gcs]'" in done.stderr
