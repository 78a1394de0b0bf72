"""The report of a run: finished, stopped, resumed after a crash, or of an earlier version."""

import json
from pathlib import Path

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import report

METRICS = dict(loss=1.0, pairs_per_second=10.0, tokens_per_second=1000.0, rows_per_second=5.0, padding_fraction=0.25)
TIMES = dict(step_s=2.0, input_wait_s=0.5, input_wait_fraction=0.25)


def update(step, **changes):
    return {"step": step, "split": "train"} | METRICS | TIMES | {"loss": 1.0 / step} | changes


def start(planned=4):
    phases = dict(
        open_s=1.0, weights_s=2.0, reference_s=0.0, state_s=0.5, evaluation_s=3.0, compile_s=4.0, update_s=1.0
    )
    times = dict(time_to_first_step_s=11.5, input_rows_per_second=90.0, planned_updates=planned)
    return {"step": 0, "split": "start"} | phases | times


def host(processes=1, **values):
    return {"step": 4, "split": "hosts", "processes": processes} | values


def write(folder: Path, metrics, goodput=()) -> str:
    for name, lines in (("metrics.jsonl", metrics), ("goodput.jsonl", goodput)):
        if lines:
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return report.write(str(folder)).read_text()


def begins(at, first, hosts=1):
    return {"began": at, "first": first, "hosts": hosts, "devices": 16, "device": "TPU v9"}


def piece(last, elapsed, ended=False, **seconds):
    return {"last": last, "elapsed": elapsed, "ended": ended, "seconds": seconds}


def test_goodput_is_a_table_over_all_sessions(tmp_path):
    crashed = [begins(0.0, 0), piece(2, 40.0, start=10.0, update=30.0), piece(3, 60.0, update=10.0, input_wait=5.0)]
    resumed = [begins(100.0, 2, hosts=2), piece(4, 40.0, True, start=10.0, update=25.0, checkpoint=5.0)]
    text = write(tmp_path, [start(), *map(update, range(1, 5))], crashed + resumed)
    assert "55.0% of 100.0 s in 2 sessions (1 of them killed), 40.0 s between them; the last one on 16" in text
    assert "16 devices (TPU v9) of 2 host processes." in text
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:3] for line in text.splitlines() if line.startswith("| ")}
    assert rows["update"] == ["55.0 s", "55.0%"]
    assert rows["start"] == ["20.0 s", "20.0%"]
    assert rows["lost"] == ["20.0 s", "20.0%"]
    assert rows["checkpoint"] == ["5.0 s", "5.0%"]
    # What took no time has no row.
    assert "reference" not in rows


def test_every_picture_that_is_shown_was_drawn(tmp_path):
    text = write(tmp_path, [start(), *map(update, range(1, 40))], [begins(0.0, 0), piece(39, 9.0, True, update=9.0)])
    shown = [line.split("](")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert shown == ["loss.png", "goodput.png", "throughput.png"]
    for name in shown:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_first_update_of_each_session_compiles_and_is_left_out_of_the_speed(tmp_path):
    slow = dict(pairs_per_second=0.1, step_s=50.0, input_wait_s=0.0)
    updates = [update(1, **slow), update(2), update(3, **slow), update(4)]
    text = write(tmp_path, [start(), *updates[:2], start() | {"step": 2}, *updates[2:]])
    assert "4 updates; 10.0 pairs/s" in text
    assert "Waiting for input: 25.0% of the time" in text


def test_a_stopped_run_says_how_far_it_came(tmp_path):
    text = write(tmp_path, [start(planned=100), update(1), update(2)])
    assert "2 updates of 100 (stopped; the same command goes on); 10.0 pairs/s" in text


def test_a_run_that_was_stopped_before_its_first_update_has_a_report(tmp_path):
    text = write(tmp_path, [], [begins(0.0, 0), piece(0, 30.0, True, reference=30.0)])
    assert "No update was made." in text
    assert "0.0% of 30.0 s in 1 session; the last one on 16 devices (TPU v9) of 1 host process." in text


def test_a_run_of_an_earlier_version_has_a_report_without_what_it_did_not_tell(tmp_path):
    old = [{key: value for key, value in update(step).items() if key not in TIMES} for step in (1, 2, 3)]
    text = write(tmp_path, old)
    assert "3 updates; 10.0 pairs/s" in text
    assert "Goodput" not in text
    assert "Host" not in text


def test_memory_of_one_host_and_of_several(tmp_path):
    assert "| its peak, GiB | 9.25 |" in write(tmp_path, [update(1), host(device_peak_gib=9.25, device_gib=None)])
    several = {"update_s": 2.0, "update_s/process": 0, "update_s/median": 2.0}
    several |= {"input_wait_s": 1.5, "input_wait_s/process": 3, "input_wait_s/median": 0.1}
    text = write(tmp_path, [update(1), host(processes=4, **several)])
    assert "| of them waiting for input | 1.50 | 3 | 0.10 |" in text


def test_kept_checkpoints_are_listed_with_their_held_out_numbers(tmp_path):
    for step, size in ((2, 3_000_000), (10, 5_000_000)):
        (tmp_path / "checkpoints" / str(step) / "state").mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "state" / "data").write_bytes(bytes(size))
    (tmp_path / "checkpoints" / "12.partial").mkdir()
    held_out = [{"step": 2, "split": "eval", "loss": 0.5, "focus/accuracies": 0.75}]
    text = write(tmp_path, [update(1), *held_out])
    assert "| 2 | 0.003 | 0.5000 | 0.7500 |\n| 10 | 0.005 |  |  |\n" in text
    assert "12" not in text.split("## Checkpoints")[1]


def test_the_best_of_the_kept_checkpoints_is_named(tmp_path):
    for step in (4, 8, 12):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"train": {"keep_best": "loss"}}))
    # That of step 6 was better still, but is gone.
    held_out = [
        {"step": step, "split": "eval", "loss": loss} for step, loss in ((4, 0.9), (6, 0.1), (8, 0.5), (12, 0.7))
    ]
    text = write(tmp_path, [update(1), *held_out])
    assert "| 8 (best by loss) |" in text
    assert text.count("best by") == 1


def test_groups_of_held_out_pairs_are_a_table(tmp_path):
    group = {"error_type/KeyError/pairs": 7, "error_type/KeyError/rewards/accuracies": 0.5}
    text = write(tmp_path, [update(1), {"step": 1, "split": "eval", "loss": 0.5} | group])
    assert "### By group, step 1" in text
    assert "| error_type/KeyError | 7 | 0.5000 |  |  |" in text
    assert "By group" not in write(tmp_path, [update(1), {"step": 1, "split": "eval", "loss": 0.5}])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a training run"):
        report.write(str(tmp_path))
