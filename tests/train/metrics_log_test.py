"""metrics.jsonl and TensorBoard's files: what is in them after a restart, and on a disk that is full."""

import errno
import struct

import pytest
from tensorboardX.proto import event_pb2

from iterpref_jax.data.tfrecord import masked_crc
from iterpref_jax.errors import UserError
from iterpref_jax.train.board import Board
from iterpref_jax.train.metrics import MetricsLog, read_metrics


def events(folder):
    """The events of all files, oldest first, framed as TensorBoard expects them."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length, crc = struct.unpack("<QI", data[:12])
            payload, end = data[12 : 12 + length], data[12 + length : 16 + length]
            assert (crc, end) == (masked_crc(data[:8]), struct.pack("<I", masked_crc(payload)))
            found.append(event_pb2.Event.FromString(payload))
            data = data[16 + length :]
    return found


def scalars(folder):
    return [(event.step, {v.tag: v.simple_value for v in event.summary.value}) for event in events(folder)]


def test_every_value_is_in_both_files_at_once_and_null_only_in_one(tmp_path):
    log = MetricsLog(tmp_path, resume_step=-1)
    log.write(1, "train", {"loss": 0.5, "mfu": None})
    log.write(1, "eval", {"loss": 0.25})
    # Not closed: a process that is killed now has lost nothing.
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "split": "train", "loss": 0.5, "mfu": None},
        {"step": 1, "split": "eval", "loss": 0.25},
    ]
    assert scalars(tmp_path / "tensorboard")[2:] == [(1, {"loss": 0.5}), (1, {"eval/loss": 0.25})]
    log.close()


def test_a_resumed_log_drops_what_came_after_its_step_and_tells_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, resume_step=-1)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": 1 / step})
    log.close()
    log = MetricsLog(tmp_path, resume_step=2)
    assert log.has(2, "train")
    assert not log.has(3, "train")
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    start = events(tmp_path / "tensorboard")[-1]
    assert (start.step, start.session_log.status) == (3, event_pb2.SessionLog.START)


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step": 2, "spl')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "split": "train"}]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step": 2 "split"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_full_disk_is_an_error_where_the_value_is_written(tmp_path, monkeypatch):
    board = Board(tmp_path, first_step=0)
    with open("/dev/full", "ab", buffering=0) as full:
        monkeypatch.setattr(board, "_file", full)
        with pytest.raises(OSError, match="No space left") as error:
            board.write(1, {"loss": 0.5})
    assert error.value.errno == errno.ENOSPC
