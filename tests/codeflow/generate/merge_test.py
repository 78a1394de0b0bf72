"""What may be put together, and what may not; that shards give what one run gives is in run_test."""

import collections
import dataclasses
import json
import os
import signal

import pytest

from iterpref_jax.__main__ import main
from iterpref_jax.cli import merge as command
from iterpref_jax.codeflow import records, rows
from iterpref_jax.codeflow.generate import report
from iterpref_jax.codeflow.generate.merge import merge
from iterpref_jax.codeflow.generate.outcome import Outcome, Step
from iterpref_jax.errors import UserError

ABOUT = {"tasks": 1, "of_tasks": 2, "settings": "s", "pairing": "p", "drop_duplicates": True}


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


def whole_shard(folder, number, drop_duplicates):
    """A shard of one task; that of shard 2 is that of shard 0 under another name."""
    steps = [
        Step(
            iteration=n,
            code=f"{'xyx'[number]} = {n}\n",
            status=status,
            error_type="",
            traceback="",
            tests_run=1,
            tests_passed=n,
        )
        for n, status in enumerate(("fail", "pass"))
    ]
    text = dict(source="s", end="paired", detail="", instruction="Do.", test_code="assert x", setup_code="")
    rest = dict(features=(), style="script", meta={}, scores={}, coverage=None)
    outcome = Outcome(task_id=f"task/{number}", steps=tuple(steps), final=1, **text, **rest)
    pair = records.Pair(
        pair_id=f"pair/{number}",
        task=f"task/{number}",
        prompt="Do.",
        chosen=steps[1].code,
        rejected=steps[0].code,
        form="code",
        meta={"trajectory": f"task/{number}"},
    )
    folder.mkdir()
    rows.write_rows(folder / "outcomes.jsonl", [{"number": number} | dataclasses.asdict(outcome)])
    records.write_pairs(folder / "pairs.jsonl", [pair])
    about = ABOUT | {"shard": [number, 3], "drop_duplicates": drop_duplicates, "samples": 0, "model": "m"}
    bills = {"spent": {}, "wasted": {}}
    made = report.make([outcome], [pair], collections.Counter(), bills, about | {"max_refinements": 1})
    report.write(folder, made)
    return folder


@pytest.mark.parametrize(("drop_duplicates", "dropped"), [(True, {"duplicate": 1}), (False, {})])
def test_equal_pairs_of_shards_are_dropped_if_one_run_would_drop_them(tmp_path, drop_duplicates, dropped):
    folders = [whole_shard(tmp_path / str(number), number, drop_duplicates) for number in range(3)]
    assert merge(folders, tmp_path / "all")["dropped_pairs"] == dropped
    kept = [pair.pair_id for pair in records.read_pairs(tmp_path / "all" / "pairs.jsonl")]
    assert kept == ["pair/0", "pair/1", "pair/2"][: 3 - len(dropped)]


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
