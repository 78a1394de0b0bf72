"""What may be put together, and what may not; that shards give what one run gives is in run_test."""

import json
import os
import signal

import pytest

from iterpref_jax.__main__ import main
from iterpref_jax.cli import merge as command
from iterpref_jax.codeflow.generate.merge import merge
from iterpref_jax.errors import UserError

ABOUT = {"tasks": 1, "of_tasks": 2, "settings": "s", "pairing": "p"}


def shard(folder, number, **changes):
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"about": ABOUT | {"shard": [number, 2]} | changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": "x"}, "settings, prompts, or model differ"),
        ({"pairing": "x"}, "settings of pairs, filters, or judge differ"),
        ({"of_tasks": 3}, "number of tasks differ"),
        ({"shard": [1, 3]}, "number of shards differ"),
    ],
)
def test_shards_of_different_generations_are_refused_with_what_differs(tmp_path, changes, said):
    folders = [shard(tmp_path / "0", 0), shard(tmp_path / "1", 1, **changes)]
    with pytest.raises(UserError, match=said):
        merge(folders, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_shard_is_not_written_over(tmp_path):
    folders = [shard(tmp_path / "0", 0), shard(tmp_path / "1", 1)]
    with pytest.raises(UserError, match="is the folder of a shard"):
        merge(folders, tmp_path / "1" / ".." / "0")


@pytest.mark.parametrize("text", ["[]", "{}", '{"about": {}}', '{"about": {"shard": [0, 2]}}'])
def test_a_report_of_another_form_is_named(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match="no report of this version"):
        merge([tmp_path], tmp_path / "all")


def test_sigterm_ends_a_merge_as_ctrl_c_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "merge", lambda folders, out: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["merge", str(tmp_path), f"--out={tmp_path / 'all'}"]) == 130
    assert "interrupted" in capsys.readouterr().err
