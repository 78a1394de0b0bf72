"""The reference pass: its order of work, its cache in every layout, and what it refuses."""

import numpy as np
import pytest
from etils import epath

from iterpref_jax import settings
from iterpref_jax.data.layout import RowSettings, Weighting, costs
from iterpref_jax.data.pipeline import PipelineSettings, StepSource
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import find_recipe
from iterpref_jax.train import reference
from iterpref_jax.train.run import open_run
from tests.support.examples import index_of, random_groups
from tests.train.loop_test import dataset, load  # noqa: F401

EXAMPLES = random_groups(10, seed=3)
WEIGHTING = Weighting(recipe=find_recipe("target_rpo"), seed=0, nll_norm="example")
PIPELINE = PipelineSettings(threads=1, prefetch=1, workers=0)
PER_PART = 6


def rows_of(layout, rows_per_microbatch=2):
    return RowSettings(
        layout=layout,
        truncate=True,
        tokens=150,
        lengths=0,
        targets=0,
        pairs=0,
        rows_per_microbatch=rows_per_microbatch,
    )


def fill(folder, layout="tree", stop_after=None):
    """Fills a cache with log-probs made of the targets; returns the cache, what `fill` says, and what happened."""
    rows, events = rows_of(layout), []
    cost = costs(index_of(EXAMPLES), rows, WEIGHTING)
    plan = reference.even_plan(cost, rows, PER_PART, multiple=1)
    source = StepSource(
        split=EXAMPLES, plan=plan, rows=rows_of(layout, plan.rows_per_microbatch), weighting=WEIGHTING,
        reference=None, own=range(plan.rows_per_microbatch),
    )  # fmt: skip
    cache = reference.ReferenceSplit(epath.Path(folder), cost.terms, PER_PART)
    write = reference._write_part

    def score(batch):
        events.append("score")
        return np.take_along_axis(-batch.target_RG.astype(np.float32), batch.term_RE, axis=-1)

    def record(path, records):
        events.append(f"write {path.name}")
        write(path, records)

    def should_stop():
        return stop_after is not None and events.count("score") == stop_after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_write_part", record)
        finished = reference.fill(cache, cache.missing(), source, score, PIPELINE, should_stop, name="test")
    return cache, finished, events


@pytest.mark.parametrize("layout", ["separate", "shared", "tree"])
def test_a_record_holds_its_weighted_tokens_in_order_whatever_the_layout(tmp_path, layout):
    cache, finished, _ = fill(tmp_path, layout)
    assert finished
    for record, example in enumerate(EXAMPLES):
        tokens = np.concatenate([example.chosen_ids, example.rejected_ids[example.rejected_focus != 0]])
        np.testing.assert_array_equal(cache[record], -tokens.astype(np.float32))


def test_the_next_part_is_computing_while_a_part_is_written(tmp_path):
    _, _, events = fill(tmp_path)
    parts = events.count("score")
    assert parts == 4
    between = [event for part in range(parts - 1) for event in ("score", f"write part-{part:05d}")]
    assert events == ["score", *between, f"write part-{parts - 1:05d}"]


def test_a_stopped_pass_keeps_what_it_computed_and_goes_on_with_the_rest(tmp_path):
    _, finished, events = fill(tmp_path / "stopped", stop_after=2)
    assert (finished, events[-1]) == (False, "write part-00001")
    cache, finished, events = fill(tmp_path / "stopped")
    whole, _, all_events = fill(tmp_path / "whole")
    assert finished
    assert events.count("score") == all_events.count("score") - 2
    assert [path.read_bytes() for path in cache.paths()] == [path.read_bytes() for path in whole.paths()]


def test_microbatches_of_the_pass_are_evenly_filled():
    cost = costs(index_of(EXAMPLES), rows_of("shared"), WEIGHTING)
    most = reference.even_plan(cost, rows_of("shared", 1), len(EXAMPLES), multiple=1).most_rows
    assert most > 5

    def even(rows_per_microbatch, multiple=1):
        plan = reference.even_plan(cost, rows_of("shared", rows_per_microbatch), len(EXAMPLES), multiple=multiple)
        return plan.microbatches, plan.rows_per_microbatch

    assert even(most - 1) == (2, -(-most // 2))
    assert even(100) == (1, most)
    assert even(100, multiple=4) == (1, -(-most // 4) * 4)


def test_rows_of_the_pass_that_a_mesh_cannot_split_are_refused(dataset):  # noqa: F811
    with pytest.raises(UserError, match=r"reference\.rows_per_microbatch is 3: make it a multiple of 8"):
        open_run(settings.read_run(load(dataset, **{"reference.rows_per_microbatch": 3})), "unused")


def test_rows_of_a_pass_that_nobody_needs_are_refused(dataset):  # noqa: F811
    with pytest.raises(UserError, match=r"reference\.rows_per_microbatch has no effect with recipe 'sft'"):
        settings.read_run(load(dataset, **{"objective.recipe": "sft", "reference.rows_per_microbatch": 8}))
