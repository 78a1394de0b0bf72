"""A step as the trainer reads it: the plan's rows, laid out, whatever the number of hosts."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iterpref_jax.data.layout import LAYOUTS, RowSettings, Weighting, costs
from iterpref_jax.data.packing import training_plan
from iterpref_jax.data.pipeline import StepSource
from iterpref_jax.objectives.weights import find_recipe
from tests.support.examples import index_of, random_groups

ROOT = Path(__file__).parents[2]
EXAMPLES = random_groups(12, seed=8)
WEIGHTING = Weighting(recipe=find_recipe("target_rpo"), seed=0, nll_norm="example")


def sources(layout, owned):
    """A source for each host, which has these places of the four rows of a microbatch."""
    rows = RowSettings(layout=layout, truncate=True, tokens=150, lengths=0, targets=0, pairs=0, rows_per_microbatch=4)
    cost = costs(index_of(EXAMPLES), rows, WEIGHTING)
    plan = training_plan(cost, rows, global_batch=9, epochs=2, steps=0, seed=1, multiple=1)
    reference = [np.arange(size, dtype=np.float32) + 1000 * record for record, size in enumerate(cost.terms)]
    return [
        StepSource(split=EXAMPLES, plan=plan, rows=rows, weighting=WEIGHTING, reference=reference, own=own)
        for own in owned
    ]


@pytest.mark.parametrize("owned", [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 1], [0, 1], [2, 3]), ([3], [0], [2], [1])])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_rows_of_all_hosts_are_those_of_one(layout, owned):
    [alone] = sources(layout, [range(4)])
    parts = sources(layout, owned)
    for step in range(len(alone)):
        for whole, *shares in zip(alone[step], *(part[step] for part in parts), strict=True):
            for own, share in zip(owned, shares, strict=True):
                np.testing.assert_array_equal(share, whole[:, own])


def test_a_host_reads_the_records_of_its_own_rows_only():
    read = []
    [source] = sources("separate", [[1]])
    split = type("Split", (), {"__len__": lambda _: 12, "__getitem__": lambda _, i: read.append(i) or EXAMPLES[i]})()
    dataclasses.replace(source, split=split)[0]
    rows = source.plan.rows(0)
    assert sorted(read) == sorted(i for number, row in enumerate(rows) if number % 4 == 1 for tree in row for i in tree)
    assert 0 < len(read) < len(source.plan.records(0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_step_holds_its_pairs_and_all_their_terms(layout):
    [source] = sources(layout, [range(4)])
    for step in range(len(source)):
        batch, records = source[step], source.plan.records(step)
        assert batch.pair_weight_RP.sum() == len(records) == 9
        used = (batch.weight_RE != 0) | (batch.nll_weight_RE != 0)
        assert used.sum() == source.plan.costs.terms[records].sum()
        by_pair = [slots.max() for slots in (batch.pair_chosen_RP, batch.pair_rejected_RP)]
        assert batch.slot_RE[used].max() <= max(by_pair)


def test_the_reference_of_a_target_is_that_of_its_first_term():
    [source] = sources("tree", [range(4)])
    batch = source[0]
    for number, trees in enumerate(source.plan.rows(0)):
        place = divmod(number, 4)
        values = np.concatenate([source.reference[record] for tree in trees for record in tree])
        first = dict(zip(batch.term_RE[place][: len(values)][::-1], values[::-1], strict=True))
        assert len(first) < len(values) or len(trees) == 1
        np.testing.assert_array_equal(batch.ref_logp_RG[place][sorted(first)], [first[term] for term in sorted(first)])


SCRIPT = """
import os, time
from iterpref_jax.data.pipeline import PipelineSettings, iterate

class Source(list):
    def __getitem__(self, i):
        return os.getpid()

if __name__ == "__main__":
    batches = iterate(Source(range(100)), PipelineSettings(threads=1, prefetch=1, workers=1), range(100))
    print(next(batches), flush=True)
    AND_THEN
"""


def test_workers_end_with_a_trainer_that_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace("AND_THEN", "time.sleep(60)"))
    words = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as trainer:
        assert trainer.stdout is not None
        worker = int(trainer.stdout.readline())
        trainer.kill()
    assert worker != trainer.pid
    end = time.monotonic() + 20
    while Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_to_the_whole_group_leaves_the_batches_that_the_trainer_still_needs(tmp_path, number):
    """A trainer of several hosts makes two more updates after a signal, and saves."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("AND_THEN", "[print(pid, flush=True) for pid in batches]"))
    words = [sys.executable, str(tmp_path / "script.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as trainer:
        assert trainer.stdout is not None
        worker = int(trainer.stdout.readline())
        os.kill(worker, number)
        pids = trainer.stdout.read().split()
    assert trainer.returncode == 0
    assert pids == [str(worker)] * 99
