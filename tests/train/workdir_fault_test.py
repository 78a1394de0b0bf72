"""Real runs whose folder is full, cannot be written to, or is taken: one message, and nothing is lost."""

import signal
import subprocess
import time

import pytest

from tests.support.runs import CONFIG, command, environment, make_dataset, numbers, overrides, run_cli

pytestmark = pytest.mark.slow

# Waits in update 3 for ever.
STAY_IN_UPDATE = """
import time
from iterpref_jax.train.loop import Trainer
update = Trainer._update
def update_and_stay(self, state, batch, done):
    if done == 3:
        time.sleep(3600)
    return update(self, state, batch, done)
Trainer._update = update_and_stay
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    dataset, cache = make_dataset(folder), folder / "cache"
    run_cli("train", CONFIG, f"--workdir={folder / 'run'}", *overrides(dataset), cache=cache)
    return dataset, cache, folder / "run"


def mount(*words) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """An empty folder that is a disk of its own, of 64 MiB until it is remounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def assert_is_one_message(ended, text):
    assert ended.returncode == 1, ended.stderr
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_full_disk_ends_the_run_with_a_message_and_room_lets_it_go_on(uninterrupted, disk):
    dataset, cache, whole = uninterrupted
    words = ("train", CONFIG, f"--workdir={disk}", *overrides(dataset))
    # Two checkpoints are kept and a third one is there while it is saved: the disk ends within the saving of one.
    one = size_of(whole / "checkpoints") // 2
    mount("-o", f"remount,size={size_of(whole) - one // 2}", disk)
    assert_is_one_message(run_cli(*words, cache=cache, check=False), "no space left on the disk")
    mount("-o", "remount,size=64m", disk)
    run_cli(*words, cache=cache)
    assert numbers(disk) == numbers(whole)


def test_a_folder_that_cannot_be_written_to_is_refused(uninterrupted, disk):
    dataset, cache, _ = uninterrupted
    mount("-o", "remount,ro", disk)
    for workdir in (disk, disk / "run"):
        ended = run_cli("train", CONFIG, f"--workdir={workdir}", *overrides(dataset), cache=cache, check=False)
        assert_is_one_message(ended, f"--workdir={workdir} cannot be written to")


def test_a_second_run_in_a_folder_is_refused_until_the_first_one_has_died(uninterrupted, tmp_path):
    dataset, cache, whole = uninterrupted
    words = ("train", CONFIG, f"--workdir={tmp_path}", *overrides(dataset))
    first = subprocess.Popen(
        command(*words, code=STAY_IN_UPDATE), env=environment(cache), stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 300
        while not (tmp_path / "checkpoints" / "2").exists():
            assert first.poll() is None, first.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        second = run_cli(*words, cache=cache, check=False)
        assert_is_one_message(second, f"another process is training in {tmp_path}: process {first.pid} on ")
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    run_cli(*words, cache=cache)
    assert numbers(tmp_path) == numbers(whole)
