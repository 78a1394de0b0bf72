"""`iterpref inject`: what is refused before the first program runs."""

import json

import pytest

from iterpref_jax.cli import inject
from iterpref_jax.errors import UserError
from tests.support.runs import CONFIG

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
