"""What a run tells about its time: the start, waits for input, a trace; and what an update in flight may not change."""

import json

import pytest

from iterpref_jax import settings
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import report
from iterpref_jax.train import goodput, loop
from iterpref_jax.train.run import open_run
from iterpref_jax.train.startup import Startup
from tests.support.runs import CONFIG, make_dataset, overrides

PHASES = {"open_s", "weights_s", "reference_s", "state_s", "evaluation_s", "compile_s", "update_s"}
QUIET = {"rows.rows_per_microbatch": 8, "train.eval_every": 0, "train.checkpoint_every": 0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def opened(dataset, workdir, **changes):
    flags = overrides(dataset, **QUIET | {"train.steps": 4, "optimizer.warmup": 0.0} | changes)
    config = settings.load_config(CONFIG.removeprefix("--config="), [flag.removeprefix("--config.") for flag in flags])
    return open_run(settings.read_run(config), str(workdir)), settings.to_json(config)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert loop.train(*opened(dataset, workdir, **{"profile.steps": "2:4"}), Startup()).finished
    return workdir


def lines(workdir, split):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def test_the_phases_of_the_start_add_up_to_the_time_to_the_first_update(finished):
    [start] = lines(finished, "start")
    assert set(start) > PHASES
    assert sum(start[phase] for phase in PHASES) == pytest.approx(start["time_to_first_step_s"])
    assert start["compile_s"] > start["update_s"] > 0


def test_every_update_tells_its_wait_for_input(finished):
    updates = lines(finished, "train")
    assert [line["step"] for line in updates] == [1, 2, 3, 4]
    for line in updates:
        assert line["input_wait_fraction"] == pytest.approx(line["input_wait_s"] / line["step_s"])
        assert 0 <= line["input_wait_fraction"] <= 1
        # 8 pairs in fewer rows: the trees of several pairs share one.
        assert 0 < line["rows_per_second"] < line["pairs_per_second"]


def test_the_report_sets_the_pipeline_against_the_updates(finished):
    text = report.write(str(finished)).read_text()
    assert "First update after" in text
    assert "Waiting for input:" in text


def test_the_trace_is_written_once_and_holds_the_updates_that_were_asked_for(finished):
    [trace] = (finished / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"update" in content
    assert b"step_num" in content


def test_updates_that_were_made_before_are_not_traced_again(dataset, finished):
    run, config = opened(dataset, finished, **{"profile.steps": "1:3"})
    assert loop.train(run, config).finished
    assert len(list((finished / "profile").rglob("*.xplane.pb"))) == 1


def test_updates_beyond_the_run_cannot_be_traced(dataset, tmp_path):
    with pytest.raises(UserError, match=r"profile\.steps = 3:6: the run has 4 updates"):
        loop.train(*opened(dataset, tmp_path, **{"profile.steps": "3:6"}))


@pytest.mark.parametrize("steps", ["3", "3:3", "4:2", "0:2", "a:b", "1:-2"])
def test_what_is_no_range_of_updates_is_refused(dataset, tmp_path, steps):
    with pytest.raises(UserError, match=r"profile\.steps must be empty or START:STOP"):
        opened(dataset, tmp_path, **{"profile.steps": steps})


def test_nan_in_an_update_that_is_read_late_is_named_and_nothing_after_it_is_kept(dataset, tmp_path, monkeypatch):
    made = []
    update = loop.Trainer._update
    monkeypatch.setattr(loop.Trainer, "_update", lambda *words: made.append(words[-1]) or update(*words))
    # Update 2 throws the parameters out of range, and update 3 is on its way when that is read.
    huge = {"optimizer.learning_rate": 1e30, "optimizer.schedule": "constant", "optimizer.warmup": 0.25}
    with pytest.raises(UserError, match=r"update 2: \S+ is (nan|inf).*none yet"):
        loop.train(*opened(dataset, tmp_path, **huge))
    assert made == [1, 2, 3]
    assert [line["step"] for line in lines(tmp_path, "train")] == [1]
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def test_all_of_the_time_is_accounted_for_and_told_where_updates_stand_still(finished):
    session, *_ = goodput.account(goodput.read(finished / goodput.FILE)).sessions
    assert session.ended
    assert sum(session.parts.values()) == pytest.approx(session.elapsed, rel=0.02)
    assert session.parts["compile"] > session.parts["update"] > 0
    assert session.parts["reference"] > 0
    assert session.parts["checkpoint"] > 0
    told = lines(finished, "goodput")
    # After the first update, where the trace ends, and at the end.
    assert [line["step"] for line in told] == [1, 3, 4]
    for line in told:
        assert sum(line[part] for part in session.parts) == pytest.approx(1.0, abs=0.02)


def test_memory_and_pace_of_the_host_are_told(finished):
    last = lines(finished, "hosts")[-1]
    assert last["processes"] == 1
    assert 0 < last["process_gib"] <= last["process_peak_gib"] < 16
    assert 0 < last["host_s"] <= last["update_s"]
