"""The account of a run's time over its sessions: what was kept, what was lost, and what a crash leaves of it."""

import json
import time

import jax
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.train import goodput
from iterpref_jax.train.goodput import LOST, account, read, session
from iterpref_jax.train.tally import Tally


def begins(at, first):
    return {"began": at, "first": first, "hosts": 1, "devices": 8, "device": "cpu"}


def piece(last, elapsed, ended=False, **seconds):
    return {"last": last, "elapsed": elapsed, "ended": ended, "seconds": seconds}


def told(parts):
    return {part: seconds for part, seconds in parts.items() if seconds}


def test_a_session_that_ended_well_is_its_parts():
    whole = account([begins(1000.0, 0), piece(4, 10.0, start=2.0, update=8.0), piece(4, 11.0, True, checkpoint=1.0)])
    assert told(whole.parts) == {"start": 2.0, "update": 8.0, "checkpoint": 1.0}
    assert whole.elapsed == 11.0
    assert whole.shares()["update"] == 8.0 / 11.0
    assert whole.between == 0.0


def test_updates_after_the_checkpoint_that_a_crash_left_are_lost():
    first = [
        begins(1000.0, 0),
        piece(4, 10.0, start=2.0, compile=1.0, update=7.0),
        piece(4, 11.0, checkpoint=1.0),
        # These were made again: their updates and evaluation are lost, and what ran when the process was killed.
        piece(7, 20.0, update=5.0, input_wait=1.0, evaluation=2.0),
    ]
    second = [begins(1060.0, 4), piece(8, 9.0, True, start=3.0, update=6.0)]
    whole = account(first + second)
    assert told(whole.parts) == {
        "update": 13.0, "compile": 1.0, "checkpoint": 1.0, "start": 5.0, LOST: 5.0 + 1.0 + 2.0 + 1.0,
    }  # fmt: skip
    assert sum(whole.parts.values()) == whole.elapsed == 29.0
    assert whole.between == 40.0
    assert [found.last for found in whole.sessions] == [7, 8]


def test_a_later_session_that_starts_further_back_loses_the_updates_of_all_before():
    lines = [
        *(begins(0.0, 0), piece(4, 4.0, True, update=4.0)),
        *(begins(10.0, 4), piece(8, 4.0, True, update=4.0)),
        # The checkpoints of updates 4 and 8 were damaged and moved away.
        *(begins(20.0, 2), piece(6, 4.0, True, update=4.0)),
    ]
    assert told(account(lines).parts) == {"update": 4.0, LOST: 8.0}


def test_a_run_that_died_before_its_first_checkpoint_lost_its_updates_and_kept_what_it_cost_to_start():
    lines = [begins(0.0, 0), piece(3, 9.0, start=2.0, compile=4.0, update=3.0), begins(10.0, 0)]
    assert told(account(lines).parts) == {"start": 2.0, "compile": 4.0, LOST: 3.0}


def write(folder, first, updates, fail=False):
    tally = Tally(time.monotonic() - 1.0)
    with session(folder, tally) as ledger:
        ledger.begin(first, 2, jax.devices())
        tally.ends("start")
        for update in updates:
            ledger.reached(update)
            tally.ends("update")
        ledger.cut()
        tally.ends("checkpoint")
        shares = ledger.shares()
        if fail:
            raise ValueError
    return shares


def test_what_a_ledger_writes_is_what_its_tally_counted(tmp_path):
    write(tmp_path, 0, [1, 2])
    [found] = account(read(tmp_path / goodput.FILE)).sessions
    assert (found.first, found.last, found.ended, found.hosts, found.devices) == (0, 2, True, 2, len(jax.devices()))
    assert sum(found.parts.values()) == pytest.approx(found.elapsed, abs=0.05)
    assert found.parts["start"] >= 1.0
    assert abs(found.began + found.elapsed - time.time()) < 1.0


def test_shares_are_those_of_all_sessions_and_add_up_to_one(tmp_path):
    write(tmp_path, 0, [1, 2])
    shares = write(tmp_path, 2, [3])
    assert shares.pop("sessions") == 2
    assert shares.pop("elapsed_s") >= 2.0
    assert sum(shares.values()) == pytest.approx(1.0, abs=0.05)
    assert shares["start"] > 0.9


def test_a_session_that_an_error_ends_is_written_too(tmp_path):
    with pytest.raises(ValueError):
        write(tmp_path, 0, [1], fail=True)
    assert account(read(tmp_path / goodput.FILE)).sessions[0].ended


def test_a_long_piece_of_work_is_told_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "SLICE_S", 0.01)
    with session(tmp_path, Tally()) as ledger:
        ledger.begin(0, 1, jax.devices())
        deadline = time.monotonic() + 30
        while len(read(tmp_path / goodput.FILE)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not account(read(tmp_path / goodput.FILE)).sessions[0].ended


def test_a_line_that_a_crash_cut_short_is_left_out_and_the_next_session_writes_behind_whole_ones(tmp_path):
    write(tmp_path, 0, [1])
    path = tmp_path / goodput.FILE
    whole = len(read(path))
    path.write_text(path.read_text() + '{"last": 7, "ela')
    assert len(read(path)) == whole
    write(tmp_path, 1, [2])
    assert len(account(read(path)).sessions) == 2
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, 0, [1])
    path = tmp_path / goodput.FILE
    path.write_text(path.read_text().replace('{"last"', '{last"', 1))
    with pytest.raises(UserError, match=r"goodput\.jsonl, line 2 is damaged.*move the file away"):
        write(tmp_path, 1, [2])


def test_other_processes_write_nothing_but_know_their_shares():
    assert write(None, 0, [1])["start"] > 0.9
