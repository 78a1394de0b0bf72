"""Two real processes, of which one reads its rows slowly: it is named."""

import pytest

from iterpref_jax.train import goodput
from iterpref_jax.train.metrics import read_metrics
from tests.support.processes import run_all
from tests.support.runs import CONFIG, make_dataset, overrides

pytestmark = pytest.mark.slow

SLOW_INPUT = """
import time
from iterpref_jax.data.pipeline import StepSource
read = StepSource.__getitem__
def read_slowly(self, step):
    time.sleep(4.0)  # much longer than an update takes on a busy machine, which the input is read beside
    return read(self, step)
StepSource.__getitem__ = read_slowly
"""


def test_the_host_that_the_others_wait_for_is_named(tmp_path):
    dataset, workdir = make_dataset(tmp_path), tmp_path / "run"
    quiet = {
        "train.eval_every": 0,
        "train.checkpoint_every": 5,
        "data.pipeline.threads": 1,
        "data.pipeline.prefetch": 1,
    }
    words = ("train", CONFIG, f"--workdir={workdir}", *overrides(dataset, **{"rows.rows_per_microbatch": 4} | quiet))
    done = run_all(2, *words, cache=tmp_path / "cache", logs=tmp_path / "logs", codes={1: SLOW_INPUT})
    line = next(
        line for line in read_metrics(workdir / "metrics.jsonl") if (line["step"], line["split"]) == (5, "hosts")
    )
    assert line["processes"] == 2
    assert line["input_wait_s/process"] == 1
    assert line["input_wait_s"] > 1.0
    # Both end an update together.
    assert line["update_s"] == pytest.approx(line["update_s/median"], rel=0.2)
    assert "the others wait for process 1 of 2" in done.text(0)
    assert "waits for its input" in done.text(0)
    assert goodput.account(goodput.read(workdir / goodput.FILE)).sessions[0].hosts == 2
    assert "## Hosts, after update" in (workdir / "report.md").read_text()
