"""Files that are there whole or not at all."""

import pytest

from iterpref_jax.atomic import replace_bytes, replace_text


def test_what_was_there_is_replaced_and_nothing_else_stays(tmp_path):
    path = tmp_path / "state.json"
    replace_text(path, "früher")
    replace_text(path, "später")
    assert path.read_bytes() == "später".encode()
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "state.json"
    replace_bytes(path, b"old")
    with pytest.raises(TypeError):
        replace_bytes(path, 7)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_bytes(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "state.json"]
