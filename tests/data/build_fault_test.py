"""Builds that were stopped: killed, interrupted, out of disk, half copied; nothing is lost and no byte changes."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from iterpref_jax.codeflow import records
from iterpref_jax.codeflow.focus import FocusSettings
from iterpref_jax.data import build, chunks, schema
from iterpref_jax.errors import UserError
from tests.data import tiny

pytestmark = pytest.mark.usefixtures("small_chunks")

ROOT = pathlib.Path(__file__).parents[2]


def _stop_at_chunk(monkeypatch, number, error):
    make = chunks.make_chunk

    def stopping(tools, chunk, items):
        if chunk == number:
            raise error
        return make(tools, chunk, items)

    monkeypatch.setattr(chunks, "make_chunk", stopping)
    return lambda: monkeypatch.setattr(chunks, "make_chunk", make)


def _build_stopped(monkeypatch, histories, tokenizer_path, out, error, match):
    heal = _stop_at_chunk(monkeypatch, 3, error)
    with pytest.raises(UserError, match=match):
        build.build([histories], out, tiny.build_settings(tokenizer_path))
    heal()
    assert not out.exists()


def test_a_full_disk_says_what_was_kept_and_the_build_goes_on(histories, tokenizer_path, tmp_path, monkeypatch, capsys):
    build.build([histories], tmp_path / "whole", tiny.build_settings(tokenizer_path))
    full = OSError(errno.ENOSPC, "No space left on device")
    out = tmp_path / "d"
    _build_stopped(monkeypatch, histories, tokenizer_path, out, full, r"no space left.*kept in .*d\.building")
    made = []
    make = chunks.make_chunk
    monkeypatch.setattr(chunks, "make_chunk", lambda tools, n, items: made.append(n) or make(tools, n, items))
    build.build([histories], out, tiny.build_settings(tokenizer_path))
    assert made == [3, 4, 5, 6, 7]
    assert "3 chunks are done" in capsys.readouterr().err
    tiny.assert_same_folder(tmp_path / "whole", out)
    assert not (tmp_path / "d.building").exists()


def test_an_interrupt_is_a_message(histories, tokenizer_path, tmp_path, monkeypatch):
    _build_stopped(monkeypatch, histories, tokenizer_path, tmp_path / "d", KeyboardInterrupt(), "stopped by a signal")


def test_other_errors_keep_their_traceback(histories, tokenizer_path, tmp_path, monkeypatch):
    _stop_at_chunk(monkeypatch, 1, OSError(errno.EACCES, "denied"))
    with pytest.raises(OSError, match="denied"):
        build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))


def test_an_unfinished_build_of_another_plan_starts_anew(histories, tokenizer_path, tmp_path, monkeypatch, capsys):
    out = tmp_path / "d"
    _build_stopped(monkeypatch, histories, tokenizer_path, out, KeyboardInterrupt(), "stopped")
    settings = tiny.build_settings(tokenizer_path, focus=FocusSettings(mode="token", empty="drop", seed=0))
    build.build([histories], out, settings)
    assert "another plan: starting anew" in capsys.readouterr().err
    build.build([histories], tmp_path / "fresh", settings)
    tiny.assert_same_folder(tmp_path / "fresh", out)


def test_a_chunk_whose_records_were_cut_is_made_again(histories, tokenizer_path, tmp_path, monkeypatch):
    out = tmp_path / "d"
    _build_stopped(monkeypatch, histories, tokenizer_path, out, KeyboardInterrupt(), "stopped")
    cut = chunks.records_path(tmp_path / "d.building" / "chunks", 1, "train")
    cut.write_bytes(cut.read_bytes()[:-7])
    build.build([histories], out, tiny.build_settings(tokenizer_path))
    build.build([histories], tmp_path / "whole", tiny.build_settings(tokenizer_path))
    tiny.assert_same_folder(tmp_path / "whole", out)


def test_an_unfinished_dataset_is_refused_by_readers(histories, tokenizer_path, tmp_path, monkeypatch):
    _build_stopped(monkeypatch, histories, tokenizer_path, tmp_path / "d", KeyboardInterrupt(), "stopped")
    with pytest.raises(UserError, match="did not finish"):
        schema.open_dataset(tmp_path / "d")


def test_two_builds_of_one_folder_do_not_run_at_once(histories, tokenizer_path, tmp_path):
    with build._locked(tmp_path / "d.building"), pytest.raises(UserError, match="another process builds"):
        build.build([histories], tmp_path / "d", tiny.build_settings(tokenizer_path))


SCRIPT = """
import sys
from iterpref_jax.data import build, chunks
from iterpref_jax.errors import UserError
from tests.data import tiny
if __name__ == "__main__":
    chunks.CHUNK_PAIRS = 8
    histories, tokenizer, out, workers = sys.argv[1:]
    try:
        build.build([histories], out, tiny.build_settings(tokenizer, workers=int(workers)))
    except UserError as error:
        sys.exit(f"refused: {error}")
"""


def _children(pid):
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # the process ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def _wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.005)


def _alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGKILL, 0), (signal.SIGKILL, 2), (signal.SIGTERM, 2)])
def test_a_killed_build_goes_on_to_the_same_bytes(tokenizer_path, tmp_path, number, workers):
    histories, out = tmp_path / "h.jsonl", tmp_path / "d"
    records.write_trajectories(histories, tiny.trajectories(3000))
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), str(histories), str(tokenizer_path), str(out), str(workers)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as process:
        done = lambda: len(list((tmp_path / "d.building" / "chunks").glob("*.json")))  # noqa: E731
        _wait_until(lambda: done() > 2 or process.poll() is not None, 120, "the first chunks")
        children = _children(process.pid)
        process.send_signal(number)
        error = process.stderr.read().decode()
    _wait_until(lambda: not any(map(_alive, children)), 20, "the workers to end with their parent")
    assert not out.exists(), "the build ended before it was killed"
    assert number == signal.SIGKILL or "refused: stopped by a signal" in error
    settings = tiny.build_settings(tokenizer_path)
    build.build([histories], out, settings)
    build.build([histories], tmp_path / "whole", settings)
    tiny.assert_same_folder(tmp_path / "whole", out)
