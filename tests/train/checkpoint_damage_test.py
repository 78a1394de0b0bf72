"""Damaged checkpoints: what changes a number is refused by name, and an older checkpoint is never used in silence."""

import random
import shutil
import sys
from pathlib import Path

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.train.checkpoint import Checkpoints, silence_other_reads
from tests.support.states import make_state, restored, same, shapes_of

ABOUT = {"config": {"seed": 0}}
STATE, OLDER = make_state(1), make_state(2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    checkpoints = Checkpoints(str(folder), keep=2, writing=True)
    checkpoints.save(5, OLDER, ABOUT)
    checkpoints.save(6, STATE, ABOUT)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def opened(folder):
    """What a resumed run reads, in its order: which checkpoint is the newest, what it is about, and its state."""
    checkpoints = Checkpoints(str(folder), keep=2, writing=True)
    try:
        newest = checkpoints.steps()[-1]
        return newest, checkpoints.about(newest), restored(checkpoints, newest, STATE)
    finally:
        checkpoints.close()


def is_safe(folder) -> str:
    """`harmless` or `refused`; anything else is a failure."""
    try:
        newest, about, state = opened(folder)
    except UserError as error:
        words = [str(folder / "6"), f"move {folder / '6'} away to go on from step 5"]
        return "refused" if all(word in str(error) for word in words) else str(error)
    assert (newest, about) == (6, ABOUT)
    assert same(state, STATE)
    return "harmless"


def files(folder):
    return sorted(path.relative_to(folder) for path in (folder / "6").rglob("*") if path.is_file())


def arrays(folder):
    """The files that hold the arrays themselves."""
    return [path for path in files(folder) if "ocdbt.process_0/d/" in path.as_posix()]


def test_a_whole_checkpoint_comes_back_bit_for_bit(folder):
    assert is_safe(folder) == "harmless"


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def smash(folder) -> None:
    """Flips a bit of every 50th byte of the arrays."""
    for name in arrays(folder):
        for place in range(0, (folder / name).stat().st_size, 50):
            flip(folder / name, place, 0)


def check_flips(folder, count):
    seen = set()
    for number, name in enumerate(files(folder)):
        path, draw = folder / name, random.Random(number)
        data = path.read_bytes()
        for place in draw.sample(range(len(data)), min(count, len(data))):
            flip(path, place, draw.randrange(8))
            seen.add((path.name, is_safe(folder)))
            assert seen <= {(path.name, outcome) for path in files(folder) for outcome in ("refused", "harmless")}
            path.write_bytes(data)
    assert len({name for name, outcome in seen if outcome == "refused"}) >= 5


def test_a_flipped_bit_in_any_file_is_refused_or_changes_nothing(folder):
    check_flips(folder, 4)


@pytest.mark.slow
def test_hundreds_of_flipped_bits_are_refused_or_change_nothing(folder):
    check_flips(folder, 50)


def test_a_file_that_is_cut_short_or_gone_is_refused_or_changes_nothing(folder):
    outcomes = set()
    for name in files(folder):
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        outcomes.add(is_safe(folder))
        path.unlink()
        outcomes.add(is_safe(folder))
        path.write_bytes(data)
    assert outcomes == {"refused", "harmless"}


def test_a_folder_that_is_gone_is_refused_or_changes_nothing(folder, whole):
    for path in sorted(path for path in (folder / "6").rglob("*") if path.is_dir()):
        shutil.rmtree(path)
        assert is_safe(folder) in ("refused", "harmless")
        shutil.copytree(whole / path.relative_to(folder), path)


def test_arrays_that_orbax_reads_without_complaint_are_refused_by_the_name_of_the_array(folder, monkeypatch):
    read = Checkpoints._read

    def damaged(self, step, stored):
        arrays = read(self, step, stored)
        name = "params/layers/q_proj"
        return arrays | {name: arrays[name].at[1, 2, 3].multiply(1 + 2**-23)}

    monkeypatch.setattr(Checkpoints, "_read", damaged)
    with pytest.raises(UserError, match=r"checkpoints/6 was damaged .* the checksum of params/layers/q_proj differs"):
        opened(folder)


def test_files_of_another_step_in_a_checkpoints_place_are_refused(folder):
    shutil.rmtree(folder / "6" / "state")
    shutil.copytree(folder / "5" / "state", folder / "6" / "state")
    with pytest.raises(UserError, match=r"6 was damaged after it was saved: the checksum of \S+ and \d+ more differs"):
        opened(folder)


def test_the_older_checkpoint_is_used_only_after_the_damaged_one_was_moved_away(folder, tmp_path):
    smash(folder)
    assert is_safe(folder) == "refused"
    (folder / "6").rename(tmp_path / "damaged")
    newest, _, state = opened(folder)
    assert newest == 5
    assert same(state, OLDER)


def test_an_emptied_checkpoint_does_not_make_an_older_one_the_newest(folder):
    for path in (folder / "6").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert is_safe(folder) == "refused"


def test_parameters_alone_are_checked_as_well(folder):
    smash(folder)
    checkpoints = Checkpoints(str(folder), keep=2, writing=False)
    shapes, shardings = shapes_of(STATE)
    assert same(checkpoints.restore_params(5, shapes.params, shardings.params), OLDER.params)
    with pytest.raises(UserError, match="checkpoints/6 cannot be read"):
        checkpoints.restore_params(6, shapes.params, shardings.params)
    checkpoints.close()


DROPPED = """
class Never:
    def __await__(self):
        yield

async def read():
    try:
        await Never()
    except BaseException as error:
        raise ValueError("dropped half done") from error
"""


@pytest.mark.parametrize(("file", "told"), [("/lib/orbax/checkpoint/_src/serialization.py", False), ("own.py", True)])
def test_only_of_orbax_is_it_not_told_that_a_coroutine_was_dropped_half_done(capsys, monkeypatch, file, told):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    silence_other_reads.__wrapped__()
    names = {}
    exec(compile(DROPPED, file, "exec"), names)
    reading = names["read"]()
    reading.send(None)
    del reading
    assert ("dropped half done" in capsys.readouterr().err) == told
