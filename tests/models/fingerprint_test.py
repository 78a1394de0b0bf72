"""The fingerprint of a model's folder, by one process and by several; what several compare of their copies."""

import shutil

import pytest

from iterpref_jax.models import fingerprint
from iterpref_jax.models.fingerprint import sample, weights_fingerprint
from tests.support.checkpoints import write_folder

FILES = ("config.json", "part-0.safetensors", "part-1.safetensors")


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "in", files=2)
    return tmp_path / "in"


@pytest.mark.parametrize("file", FILES)
def test_the_fingerprint_changes_with_any_byte_and_only_then(file, folder, tmp_path):
    before = weights_fingerprint(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert weights_fingerprint(str(tmp_path / "copy")) == before
    path = tmp_path / "copy" / file
    data = bytearray(path.read_bytes())
    for place in (0, len(data) // 2, -1):
        data[place] ^= 1
        path.write_bytes(data)
        assert weights_fingerprint(str(tmp_path / "copy")) != before
        data[place] ^= 1


def several(monkeypatch, folders):
    """What each of so many processes finds, and the files that it reads."""
    count, found, read, checked = len(folders), [], [], fingerprint._checked
    monkeypatch.setattr(fingerprint.distributed, "process_count", lambda: count)
    for turn in "read", "gather":
        told = [dict(one) for one in read]
        for number, folder in enumerate(folders):
            mine = {}

            def noted(file, mine=mine):
                mine[file.name] = checked(file)
                return mine[file.name]

            monkeypatch.setattr(fingerprint, "_checked", noted)
            monkeypatch.setattr(fingerprint.distributed, "process_index", lambda number=number: number)
            monkeypatch.setattr(fingerprint.distributed, "gather", lambda name, value, told=told: told)
            made = weights_fingerprint(str(folder))
            (read if turn == "read" else found).append(mine if turn == "read" else made)
    return found, read


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_several_processes_read_each_file_once_and_find_what_one_finds(monkeypatch, folder, count):
    alone = weights_fingerprint(str(folder))
    found, read = several(monkeypatch, [folder] * count)
    assert found == [alone] * count
    assert sorted(name for one in read for name in one) == sorted(FILES)


def test_copies_of_other_files_have_other_fingerprints(monkeypatch, folder, tmp_path):
    write_folder(tmp_path / "other", files=3)
    found, _ = several(monkeypatch, [folder, tmp_path / "other"])
    assert found[0] != found[1]


def test_a_sample_looks_at_a_page_of_every_block_and_at_the_sizes(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(fingerprint, "BLOCK", 64)
    monkeypatch.setattr(fingerprint, "PAGE", 8)
    before = sample(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert sample(str(tmp_path / "copy")) == before
    path = tmp_path / "copy" / "part-1.safetensors"
    data = path.read_bytes()
    # The header says what tensors there are, so only what is behind it may change for the folder to be read.
    last = (len(data) - 1) // 64 * 64
    for place, seen in ((last, True), (last - 64 + 7, True), (last - 64 + 8, False)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert (sample(str(tmp_path / "copy")) != before) == seen
    path.write_bytes(data + b"\0")
    assert sample(str(tmp_path / "copy")) != before
