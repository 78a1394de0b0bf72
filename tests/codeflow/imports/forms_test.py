"""Each form from a few rows to verified trajectories."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from iterpref_jax.codeflow.imports import forms
from iterpref_jax.errors import UserError
from tests.codeflow.imports.importing import (
    ADD,
    ECHO,
    FIX,
    LIMITS,
    RIGHT,
    WRONG,
    codes,
    run_import,
    write,
)


def test_a_fix_is_a_history_of_the_wrong_program_and_its_repair(tmp_path):
    [trajectory], report = run_import(tmp_path, "fixes", [FIX])
    assert codes(trajectory) == [WRONG, RIGHT]
    assert [version.error_type for version in trajectory.versions] == ["AssertionError", None]
    assert (trajectory.task_id, trajectory.task, trajectory.source) == ("add", "add", "in")
    assert (report.agreed, report.differed) == (2, 0)


def test_the_insides_of_functions_get_their_declaration_and_check_is_called(tmp_path):
    row = {
        "task_id": "Python/0",
        "instruction": "Add.",
        "declaration": "def add(a, b):\n",
        "buggy_solution": "    return a - b\n",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "entry_point": "add",
    }
    [trajectory], _ = run_import(tmp_path, "fixes", [row])
    assert codes(trajectory) == [WRONG, RIGHT]
    assert trajectory.test_code.endswith("\n\ncheck(add)\n")


def test_a_repair_that_does_not_pass_is_dropped_and_its_verdict_differs(tmp_path):
    found, report = run_import(tmp_path, "fixes", [{**FIX, "buggy_code": "x = 1\n", "fixed_code": WRONG}])
    assert found == []
    assert report.dropped == {"final_fails": 1}
    assert [(d["version"], d["recorded"]) for d in report.differences] == [(1, "passes")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"test_code": ""}, "no_tests"),
        ({"instruction": ""}, "no_instruction"),
        ({"buggy_code": RIGHT}, "one_version"),
        ({"buggy_code": RIGHT + "\n"}, "no_failing_version"),
        ({"language": "cpp"}, "other_language"),
        ({"style": "nose"}, "other_style"),
        ({"test_code": "assert callable(add)\n", "buggy_code": "x = 1\n"}, "vacuous"),
        ({"test_code": "add(1, 2)\n", "buggy_code": "x = 1\n"}, "vacuous"),
        ({"fixed_code": "def add(a, b):\n    return a + b if hash('x') % 2 else 0\n"}, ("flaky", "final_fails")),
    ],
)
def test_what_gives_no_trajectory_has_a_named_reason(tmp_path, changes, reason):
    found, report = run_import(tmp_path, "fixes", [{**FIX, **changes}])
    assert found == []
    [(name, count)] = report.dropped.items()
    assert name in (reason if isinstance(reason, tuple) else (reason,))
    assert count == 1


def test_a_program_that_passes_with_one_hash_seed_only_is_flaky(tmp_path):
    # Seed 0 must pass, so that the other two find the fault.
    code = "import os\n\ndef add(a, b):\n    return a + b if os.environ['PYTHONHASHSEED'] == '0' else 0\n"
    _, report = run_import(tmp_path, "fixes", [{**FIX, "fixed_code": code}])
    assert report.dropped == {"flaky": 1}


def test_the_same_history_twice_is_kept_once_and_equal_names_are_told_apart(tmp_path):
    other = {**FIX, "buggy_code": "def add(a, b):\n    return b - a\n"}
    found, report = run_import(tmp_path, "fixes", [FIX, FIX, other])
    assert [trajectory.task_id for trajectory in found] == ["add", "add#2"]
    assert report.dropped == {"duplicate": 1}


def test_unittest_classes_run_against_the_module_solution(tmp_path):
    tests = (
        "import unittest\n\nclass AddTest(unittest.TestCase):\n"
        "    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n"
    )
    [trajectory], _ = run_import(tmp_path, "fixes", [{**FIX, "test_code": tests}])
    assert trajectory.meta["style"] == "unittest"
    assert trajectory.test_code.startswith("from solution import *\n")


def test_plain_test_functions_are_called(tmp_path):
    tests = "def test_add():\n    assert add(1, 2) == 3\n"
    [trajectory], _ = run_import(tmp_path, "fixes", [{**FIX, "test_code": tests}])
    assert trajectory.test_code.endswith("\n\n\ntest_add()\n")


def test_submissions_are_ordered_by_time_and_end_at_the_first_pass(tmp_path):
    def row(user, time, code, status):
        return {"user": user, "task": "add", "time": time, "code": code, "status": status}

    log = [
        row("ann", "2024-01-02T10:00:00+01:00", RIGHT, "Accepted"),
        row("bob", "2024-01-01", WRONG, "WRONG_ANSWER"),
        row("ann", "2024-01-02T08:30:00Z", WRONG, "Accepted"),
        row("ann", "2024-01-02T08:00:00Z", "def add(a, b:\n", "Compile Error"),
        row("ann", "2024-01-02T08:10:00Z", "def add(a, b:\n", "pending"),
        row("ann", "2024-01-03", RIGHT + "# tidied\n", "Accepted"),
    ]
    [trajectory], report = run_import(tmp_path, "submissions", log, tests=[ADD])
    assert codes(trajectory) == ["def add(a, b:\n", WRONG, RIGHT]
    assert (trajectory.task_id, trajectory.task, trajectory.meta["user"]) == ("add/ann", "add", "ann")
    assert report.dropped == {"one_version": 1}
    assert [(d["name"], d["recorded"]) for d in report.differences] == [("add/ann", "passes")]


def test_submissions_come_from_csv_as_well(tmp_path):
    table = f'user_id,problem_id,timestamp,source_code\n7,add,20,"{RIGHT}"\n7,add,3,"{WRONG}"\n'
    [trajectory], _ = run_import(tmp_path, "submissions", table, tests=[ADD], name="log.csv")
    assert codes(trajectory) == [WRONG, RIGHT]


def test_times_that_are_dates_and_numbers_cannot_be_ordered(tmp_path):
    log = [{"user": "a", "task": "add", "time": time, "code": RIGHT} for time in (5, "2024-01-01")]
    with pytest.raises(UserError, match=r"line 2: '2024-01-01': times before were numbers"):
        run_import(tmp_path, "submissions", log, tests=[ADD])


def test_a_trace_holds_the_programs_of_the_writers_turns_and_no_snippets(tmp_path):
    def fenced(code):
        return f"Let me see.\n```python\n{code}```\n"

    messages = [
        {"role": "user", "content": "Write add.\n```python\ndef add(a, b): ...\n```"},
        {"role": "assistant", "content": fenced(WRONG)},
        {"role": "tool", "content": "AssertionError"},
        {"role": "assistant", "content": "<execute>\nprint(1 + 2)\n</execute>"},
        {"role": "assistant", "content": [{"type": "text", "text": f"<execute>\n{RIGHT}</execute> done"}]},
    ]
    row = {"task_id": "add", "messages": messages, "test_code": ADD["test_code"], "model": "m"}
    [trajectory], _ = run_import(tmp_path, "traces", [row])
    assert codes(trajectory) == [WRONG, RIGHT]
    assert trajectory.instruction.startswith("Write add.")
    assert (trajectory.task_id, trajectory.meta["model"]) == ("add/m", "m")


def test_a_trace_of_listed_programs_and_one_without_code(tmp_path):
    rows = [{**ADD, "implementations": [WRONG, RIGHT]}, {**ADD, "messages": [{"role": "assistant", "content": "No."}]}]
    [trajectory], report = run_import(tmp_path, "traces", rows)
    assert codes(trajectory) == [WRONG, RIGHT]
    assert report.dropped == {"no_code": 1}


def test_a_right_program_is_paired_with_the_nearest_wrong_one(tmp_path):
    near, far = "n = int(input())\nprint(n + 3)\n", "import sys\nsys.exit(3)\n"
    row = {
        **ECHO,
        "solutions": {"language": [2, 3], "solution": ["int main() {}", "n = int(input())\nprint(n * 2)\n"]},
        "incorrect_solutions": {"language": [3, 3, 1], "solution": [far, near, "print 1"]},
    }
    [trajectory], report = run_import(tmp_path, "problems", [row])
    assert codes(trajectory) == [near, "n = int(input())\nprint(n * 2)\n"]
    assert trajectory.meta["style"] == "stdin"
    assert json.loads(trajectory.test_code)[1] == {"input": "5\n", "output": "10\n"}
    assert report.differed == 0


def test_samples_are_right_or_wrong_as_they_run(tmp_path):
    samples = [f"```python\n{WRONG}```", RIGHT, "def add(a, b):\n    return a\n"]
    [trajectory], _ = run_import(tmp_path, "problems", [{**ADD, "samples": samples}])
    assert codes(trajectory)[-1] == RIGHT
    assert not trajectory.versions[0].passed


def test_a_program_that_is_called_wrong_but_passes_is_neither(tmp_path):
    row = {**ADD, "solutions": [RIGHT], "incorrect_solutions": [RIGHT + "# x\n"]}
    found, report = run_import(tmp_path, "problems", [row])
    assert found == []
    assert report.dropped == {"no_failing_version": 1}
    assert report.differed == 1


def test_cases_of_functions_become_calls_of_functions_or_methods(tmp_path):
    cases = json.dumps({"fn_name": "add", "inputs": [[1, 2], [2, 2]], "outputs": [3, 4]})
    method = "class Solution:\n    def add(self, a, b):\n        return a + b\n"
    row = {"task_id": "add", "question": "Add.", "input_output": cases, "solutions": json.dumps([RIGHT, method])}
    found, _ = run_import(tmp_path, "problems", [{**row, "incorrect_solutions": [WRONG]}])
    assert [codes(trajectory)[-1] for trajectory in found] == [RIGHT, method]


def test_cases_of_functions_may_hold_infinite_numbers_and_numbers_that_are_none(tmp_path):
    right = "def low(d):\n    return min(v for v in d['nan'] if v == v)\n"
    wrong = "def low(d):\n    return max(v for v in d['nan'] if v == v)\n"
    inputs, outputs = [[{"nan": [float("nan"), 2.5, -float("inf")]}], [{"nan": [float("inf")]}]], [-1e999, 1e999]
    cases = json.dumps({"fn_name": "low", "inputs": inputs, "outputs": outputs})
    row = {"task_id": "low", "question": "Low.", "input_output": cases, "solutions": [right]}
    [trajectory], _ = run_import(tmp_path, "problems", [{**row, "incorrect_solutions": [wrong]}])
    assert [version.error_type for version in trajectory.versions] == ["AssertionError", None]


@pytest.mark.parametrize("name", ["plain", "entry"])
def test_a_program_may_name_its_functions_as_it_likes(tmp_path, name):
    cases = json.dumps({"fn_name": "add", "inputs": [[1, 2], [2, 2]], "outputs": [[3], [4]]})
    right = f"def {name}(a, b):\n    return [a + b]\n\n\ndef add(a, b):\n    return {name}(a, b)\n"
    row = {"task_id": "add", "question": "Add.", "input_output": cases, "solutions": [right]}
    [trajectory], _ = run_import(tmp_path, "problems", [{**row, "incorrect_solutions": [WRONG]}])
    assert codes(trajectory)[-1] == right


def test_only_the_chosen_number_of_solutions_is_run(tmp_path):
    row = {**ADD, "solutions": [RIGHT + "#\n" * n for n in range(5)], "incorrect_solutions": [WRONG]}
    limits = dataclasses.replace(LIMITS, max_solutions=2)
    found, report = run_import(tmp_path, "problems", [row], limits=limits)
    assert len(found) == 2
    assert report.statuses == {"pass": 2, "fail": 1}


def test_our_own_trajectories_are_not_believed(tmp_path):
    versions = [{"code": WRONG, "passed": True}, {"code": "x\n", "passed": False}, {"code": RIGHT, "passed": True}]
    [trajectory], report = run_import(tmp_path, "trajectories", [{**ADD, "versions": versions, "meta": {"task": "t"}}])
    assert [version.passed for version in trajectory.versions] == [False, False, True]
    assert trajectory.task == "t"
    assert report.differences == [
        {"name": "add", "version": 0, "recorded": "passes", "found": "fail AssertionError"},
    ]


@pytest.mark.parametrize("form", ["fixes", "problems", "submissions"])
def test_what_was_imported_can_be_imported_again(tmp_path, form):
    rows_of = {
        "fixes": [{**FIX, "test_code": "import solution\n\ndef test_it():\n    assert solution.add(1, 2) == 3\n"}],
        "problems": [{**ECHO, "solutions": ["print(2 * int(input()))\n"], "incorrect_solutions": ["print(4)\n"]}],
        "submissions": [{**ADD, "user": "a", "time": n, "code": code} for n, code in enumerate((WRONG, RIGHT))],
    }
    (tmp_path / "first").mkdir()
    found, _ = run_import(tmp_path / "first", form, rows_of[form])
    assert len(found) == 1
    again, report = run_import(tmp_path, "trajectories", tmp_path / "first" / "out" / "trajectories.jsonl")
    assert again == found
    assert report.differed == 0


def test_files_of_mint_are_read_as_they_are(tmp_path):
    def turn(role, content):
        return {"role": role, "content": content}

    history = [
        turn("user", "You are an assistant. Task: add."),
        turn("assistant", f"Thought: easy.\n<execute>\n{WRONG}print(add(1, 2))\n</execute>"),
        turn("user", "Observation:\n-1\nExpert feedback: use plus."),
        turn("assistant", f"<solution>\n{RIGHT}</solution>"),
    ]
    task = {"task_name": "mbpp", "task_id": 7, "prompt": "Add.", "reference": ADD["test_code"]}
    path = write(tmp_path / "mint.jsonl", [{"state": {"history": history, "success": True}, "task": task}])
    assert forms.guess_form(path)[0].name == "traces"
    [trajectory], _ = run_import(tmp_path, "traces", pathlib.Path(path))
    assert codes(trajectory) == [f"{WRONG}print(add(1, 2))\n", RIGHT]
    assert (trajectory.task, trajectory.instruction) == ("7", "Add.")


def test_code_contests_come_as_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {
        **ECHO,
        "private_tests": {"input": [], "output": []},
        "solutions": {"language": [3], "solution": ["print(2 * int(input()))\n"]},
        "incorrect_solutions": {"language": [3, 2], "solution": ["print(4)\n", "int main() {}"]},
        "difficulty": 7,
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train.parquet")
    assert forms.guess_form(str(tmp_path / "train.parquet"))[0].name == "problems"
    [trajectory], _ = run_import(tmp_path, "problems", tmp_path / "train.parquet")
    assert codes(trajectory) == ["print(4)\n", "print(2 * int(input()))\n"]
