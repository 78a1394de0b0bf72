"""Folders of a run: what is wrong with them is found, and nothing is left behind."""

import fcntl
import os
import types

import pytest

from iterpref_jax.doctor import storage
from iterpref_jax.doctor.finding import FAIL, OK, WARN


def statuses(findings):
    return {one.status for one in findings}


def check(folder, needed=0):
    # How fast a disk of a test machine is does not matter.
    return [one for one in storage.check_writing(str(folder), "workdir", needed) if "writes only" not in one.text]


def test_a_good_folder_is_well_and_stays_as_it_was(tmp_path):
    (tmp_path / "file").write_text("x")
    assert statuses(check(tmp_path)) == {OK}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there_yet_is_tried_and_taken_away_again(tmp_path):
    assert statuses(check(tmp_path / "a" / "b")) == {OK}
    assert not any(tmp_path.iterdir())


def test_a_path_below_a_file_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("x")
    [finding] = check(tmp_path / "file" / "run")
    assert finding.status == FAIL
    assert finding.advice


def test_too_little_room_for_the_checkpoints_is_a_failure_with_both_numbers(tmp_path):
    [finding] = [one for one in check(tmp_path, needed=2**60) if one.status == FAIL]
    assert "GiB are free" in finding.text
    assert "1073741824.0 GiB" in finding.text


def test_a_full_disk_is_a_failure(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    [finding] = check(tmp_path)
    assert (finding.status, "No space left" in finding.text) == (FAIL, True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("refusing", [True, False])
def test_a_file_system_without_locks_is_a_warning(refusing, tmp_path, monkeypatch):
    def flock(file, operation):
        if refusing:
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr(
        storage, "fcntl", types.SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
    )
    [finding] = [one for one in check(tmp_path) if one.status == WARN]
    assert "start only one" in finding.advice


def test_a_file_server_whose_clock_is_off_is_a_warning(tmp_path, monkeypatch):
    now = storage.time.time()
    monkeypatch.setattr(storage.time, "time", lambda: now - 3600)
    [finding] = [one for one in check(tmp_path) if one.status == WARN]
    assert "+3600 s off" in finding.text


def test_a_dataset_folder_is_read_and_an_empty_or_absent_one_is_a_failure(tmp_path):
    [missing] = storage.check_reading(str(tmp_path / "none"), "data")
    [empty] = storage.check_reading(str(tmp_path), "data")
    (tmp_path / "shard").write_bytes(b"x" * 1000)
    [well] = storage.check_reading(str(tmp_path), "data")
    assert (missing.status, empty.status, well.status) == (FAIL, FAIL, OK)
    assert "1 files" in well.text


def test_a_scheme_that_nothing_here_can_open_is_a_failure():
    [finding] = storage.check_writing("nosuch://bucket/run", "workdir", 0)
    assert finding.status == FAIL
