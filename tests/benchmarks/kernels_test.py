import json
import subprocess
import sys

import pytest

from iterpref_jax.data import schema
from iterpref_jax.data.layout import RowSettings, lay_out
from iterpref_jax.errors import UserError
from tests.benchmarks.conftest import FOLDER


def test_a_form_that_is_refused_says_why_and_the_others_are_measured():
    sizes = ["--rows", "1", "--tokens", "128", "--head-dim", "64", "--repeats", "1"]
    words = [sys.executable, str(FOLDER / "kernels.py"), *sizes, "--forms", "cudnn", "xla", "cpu"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    refused, *measured = map(json.loads, ended.stdout.splitlines())
    assert refused["form"] == "cudnn"
    assert "cuDNN" in refused["error"]
    assert [line["form"] for line in measured] == ["xla", "cpu"]
    for line in measured:
        assert line["forward_ms"] > 0
        assert max(line["deviation"].values()) < 1e-4


def test_rows_hold_the_first_pairs_without_a_gap_and_too_few_or_too_long_pairs_are_refused(
    benchmark_module, dataset_folder
):
    kernels = benchmark_module("kernels")
    split = schema.open_dataset(dataset_folder).split("train")
    needed = int((split.index.prompt_len + split.index.chosen_len + split.index.rejected_len).max())

    def packed(rows, tokens):
        words = ["--rows", str(rows), "--tokens", str(tokens), "--data", str(dataset_folder)]
        return kernels.packed(kernels.flags(words))

    batch = packed(3, needed)
    pairs = int((batch.pair_weight_RP > 0).sum())
    rows = RowSettings(
        layout="shared", truncate=True, tokens=needed, lengths=0, targets=0, pairs=0, rows_per_microbatch=1
    )
    tokens = [len(lay_out([split[i]], [i], rows, kernels.WEIGHTING).tokens) for i in range(pairs)]
    assert (batch.visible_until_RT > 0).sum() == sum(tokens)
    assert all((batch.visible_until_RT > 0).any(axis=1))
    with pytest.raises(UserError, match="fill only"):
        packed(1000, needed)
    with pytest.raises(UserError, match=r"pair .* has \d+ tokens: raise --tokens 8"):
        packed(1, 8)
