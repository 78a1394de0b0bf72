"""`iterpref inject`: what is refused before the first program runs, and what a stop leaves."""

import json
import os
import signal

import pytest

from iterpref_jax.cli import inject
from iterpref_jax.codeflow.sandbox import Sandbox
from iterpref_jax.errors import UserError
from tests.support.runs import CONFIG

UNSAFE = ("--config.sandbox.tier=rlimit", "--config.sandbox.allow_unsafe=True", "--config.sandbox.workers=1")

TASK = {
    "task_id": "a",
    "instruction": "Add one.",
    "code": "def f(x):\n    return x + 1\n",
    "test_code": "assert f(1) == 2\n",
}


def test_two_files_that_share_a_task_id_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inject, "open_sandbox", lambda settings: pytest.fail("nothing may run"))
    words = [CONFIG, f"--out={tmp_path / 'out.jsonl'}"]
    for name in "one", "two":
        (tmp_path / name).write_text(json.dumps(TASK) + "\n")
        words.append(f"--source={tmp_path / name}")
    with pytest.raises(UserError, match="the task_id 'a' is of 2 tasks of the sources"):
        inject.main(words)


def words_for(folder, count, *more):
    """A folder of its own with so many tasks, and the command that injects bugs into them."""
    folder.mkdir()
    tasks = [TASK | {"task_id": str(number), "code": f"{TASK['code']}# {number}\n"} for number in range(count)]
    (folder / "tasks").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return [CONFIG, f"--source={folder / 'tasks'}", f"--out={folder / 'out.jsonl'}", *UNSAFE, *more]


def test_a_stopped_command_goes_on_from_its_verdicts_and_writes_the_same(tmp_path, monkeypatch, capsys):
    ran, run = [], Sandbox.run

    def counted(self, program, **options):
        ran.append(program)
        if len(ran) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, program, **options)

    monkeypatch.setattr(Sandbox, "run", counted)
    stop_at = 0
    inject.main(words_for(tmp_path / "whole", 4))
    alone, stop_at = len(ran), len(ran) + 7
    words = words_for(tmp_path / "stopped", 4)
    with pytest.raises(KeyboardInterrupt):
        inject.main(words)
    assert "run the same command again to go on" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / "out.jsonl").exists()
    before, stop_at = len(ran), 0
    inject.main(words)
    assert "verdicts are there" in capsys.readouterr().err
    assert 0 < len(ran) - before < alone
    # The journal's work is done: nothing is left that a later start could take for its own.
    names = ["out.jsonl", "out.report.json", "tasks"]
    assert [sorted(os.listdir(tmp_path / name)) for name in ("whole", "stopped")] == [names, names]
    for name in names:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--config.inject.max_bugs=0"], "inject.max_bugs: wanted at least 1"),
        (["--out=gs://bucket/out.jsonl"], "--out=gs://bucket/out.jsonl: this is written to a local"),
    ],
)
def test_bad_settings_are_refused_and_leave_nothing(tmp_path, more, error):
    words = words_for(tmp_path / "bad", 1, *more)
    with pytest.raises(UserError, match=error):
        inject.main(words)
    assert os.listdir(tmp_path / "bad") == ["tasks"]
