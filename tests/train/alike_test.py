"""A folder that not all hosts can write is told to all of them: nobody waits for a word that does not come."""

import pytest
from etils import epath

from iterpref_jax.errors import UserError
from iterpref_jax.train import alike


@pytest.fixture
def pair(monkeypatch):
    """Makes this process number `number` of two, of which the other says `other`."""

    def make(number, other, hidden=(), made=""):
        said, told = [], {"shared hidden": hidden, "shared made": made}

        def gather(name, value):
            said.append(value)
            return [value, other] if number == 0 else [other, value]

        changes = {
            "process_count": lambda: 2,
            "process_index": lambda: number,
            "is_main": lambda: number == 0,
            "described": lambda process: f"process {process}",
            "gather": gather,
            "from_main": lambda name, value: told[name] if number and name in told else value,
        }
        for name, change in changes.items():
            monkeypatch.setattr(alike.distributed, name, change)
        return said

    monkeypatch.setattr(alike, "SEEN_WITHIN_S", 0.2)
    return make


def test_a_folder_that_process_0_cannot_make_is_said_by_all(pair, tmp_path):
    (tmp_path / "file").write_text("")
    pair(0, [False, ""])
    with pytest.raises(UserError, match=r"file/run: process 0 cannot write there .*Not a directory"):
        alike.check_shared(epath.Path(tmp_path / "file" / "run"))
    pair(1, [False, ""], made="Read-only file system")
    with pytest.raises(UserError, match=r"run: process 0 cannot write there \(Read-only file system\)"):
        alike.check_shared(epath.Path(tmp_path / "run"))


def test_a_folder_that_another_process_does_not_see_is_not_shared(pair, tmp_path):
    pair(0, [False, ""])
    with pytest.raises(UserError, match="not one folder for all hosts: process 0 does not share it with process 1"):
        alike.check_shared(epath.Path(tmp_path))
    assert list(tmp_path.iterdir()) == []
