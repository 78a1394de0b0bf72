"""Which checkpoints lie in a folder, on a disk and in a bucket."""

import pathlib

import pytest
from etils import epath

from iterpref_jax.train.saved import steps_in


class Bucket(pathlib.PurePosixPath):
    """A folder of a disk with the name of one in a bucket."""

    def __str__(self):
        return "gs:/" + super().__str__()

    def exists(self):
        return pathlib.Path(super().__str__()).exists()

    def iterdir(self):
        return [Bucket(path) for path in pathlib.Path(super().__str__()).iterdir()]


@pytest.fixture
def folder(tmp_path):
    for name in ("10", "2", "6", "4.orbax-checkpoint-tmp-1"):
        (tmp_path / name).mkdir()
        if name != "10":
            (tmp_path / name / "commit_success.txt").write_text("")
    return tmp_path


def test_steps_are_told_oldest_first(folder):
    assert steps_in(epath.Path(folder)) == [2, 6, 10]
    assert steps_in(epath.Path(folder) / "none") == []


def test_what_was_being_saved_in_a_bucket_is_no_checkpoint(folder):
    assert str(Bucket(folder)).startswith("gs://")
    assert steps_in(Bucket(folder)) == [2, 6]
