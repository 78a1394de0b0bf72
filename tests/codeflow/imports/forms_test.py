"""Each form from a few rows to verified trajectories."""

from __future__ import annotations

import dataclasses
import json

import pytest

from iterpref_jax.codeflow import rows
from iterpref_jax.codeflow.imports import forms, problems, recorded, task_tests
from iterpref_jax.codeflow.imports.candidates import REASONS
from iterpref_jax.codeflow.imports.columns import Columns
from iterpref_jax.codeflow.imports.runs import Subject
from iterpref_jax.codeflow.sandbox import open_sandbox
from iterpref_jax.errors import UserError
from tests.codeflow.imports.importing import LIMITS, ROOT, SANDBOX, codes, run_import, write

RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"
ADD = {"task_id": "add", "instruction": "Add.", "test_code": "assert add(1, 2) == 3\n"}
FIX = {**ADD, "buggy_code": WRONG, "fixed_code": RIGHT}
ECHO = {
    "name": "double",
    "description": "Double it.",
    "public_tests": {"input": ["2\n", "5\n"], "output": ["4\n", "10\n"]},
}


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


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (FIX, "fixes"),
        ({**ADD, "versions": [{"code": RIGHT, "passed": True}]}, "trajectories"),
        ({"user": 1, "task": "a", "time": 2, "code": "x"}, "submissions"),
        ({**ADD, "conversations": [{"from": "gpt", "value": "x"}]}, "traces"),
        ({**ECHO, "solutions": ["x"]}, "problems"),
        ({"prompt": "import math\n", "completion": "x", "test": "def check(c): ...", "entry_point": "f"}, "problems"),
    ],
)
def test_the_form_is_guessed_from_the_columns(tmp_path, row, form):
    found, why = forms.guess_form(write(tmp_path / "a.jsonl", [row]))
    assert found.name == form
    assert why == f"by the columns {', '.join(row)}"


def test_a_file_that_no_form_fits_is_refused_with_its_columns(tmp_path):
    with pytest.raises(UserError, match=r"no form fits the columns foo; .*--column=FIELD=COLUMN"):
        forms.guess_form(write(tmp_path / "a.jsonl", [{"foo": 1}]))


def test_a_form_that_is_not_there_gets_the_closest_name():
    with pytest.raises(UserError, match=r"'trace' is no form; did you mean 'traces'\?"):
        forms.find_form("trace")


def test_a_missing_column_is_named_with_what_was_looked_for(tmp_path):
    row = {**ADD, "buggy_code": WRONG, "repaired": RIGHT}
    with pytest.raises(UserError, match=r"line 1: no value for the field 'fixed'.*--column=fixed=COLUMN"):
        run_import(tmp_path, "fixes", [row])
    [trajectory], _ = run_import(tmp_path, "fixes", [row], renamed={"fixed": "repaired"})
    assert codes(trajectory) == [WRONG, RIGHT]


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"fixxed": "a"}, r"no field 'fixxed'; did you mean 'fixed'\?"),
        ({"fixed": "fixed_cod"}, r"there is no such column; did you mean 'fixed_code'\?"),
    ],
)
def test_a_wrong_renaming_is_refused(tmp_path, renamed, message):
    with pytest.raises(UserError, match=message):
        run_import(tmp_path, "fixes", [FIX], renamed=renamed)


def test_nested_columns_are_found():
    columns = Columns(forms.find_form("traces").fields, {})
    assert columns.value({"state": {"history": [1]}, "task": {"prompt": "p"}}, "messages", "") == [1]
    assert columns.text({"task": {"task_id": 3}}, "instruction", "") == ""


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        (True, ("AC", "OK", 1, "passed", "Accepted")),
        (False, ("WA: Presentation Error", "RE", "Time Limit Exceeded", "WRONG_ANSWER", "Failed", 0)),
        (None, ("queued", "", None, "result")),
    ],
)
def test_words_of_judges_are_understood(passes, words):
    assert {word: recorded.passes(word) for word in words} == dict.fromkeys(words, passes)


def test_python_3_is_known_by_its_names():
    others = ("Python 2", "python2.7", "java", "python 2 (2.7)", 1, "")
    assert not [name for name in others if recorded.is_python_3(name)]
    names = ("Python3", "python 3.11", "PyPy 3", "Python 3 (3.8)", "py", "python", 3, "PyPy3-64")
    assert [name for name in names if not recorded.is_python_3(name)] == []


def test_similarity_counts_common_lines_in_order():
    assert problems.similarity("a\nb\nc\n", "a\nc\nd\n") == pytest.approx(4 / 6)
    assert problems.similarity("a\nb\n", "b\na\n") == pytest.approx(0.5)


def test_csv_cells_may_hold_lines_and_rows_must_be_whole(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n"x\ny",1\n')
    assert list(rows.read_rows(path)) == [(f"{path}, row 1", {"a": "x\ny", "b": "1"})]
    with pytest.raises(UserError, match="row 1: it has more or fewer cells"):
        list(rows.read_rows(write(tmp_path / "b.csv", "a,b\n1\n")))


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("problems", {**ADD, "solutions": {"language": [3], "solution": []}}, "wanted lists 'language' and 'solution'"),
        ("problems", {**ADD, "solutions": [1]}, "a solution must be a string or an object"),
        ("problems", {**ECHO, "public_tests": {"input": ["1"], "output": []}}, "cases must be a list of objects"),
        ("problems", {**ECHO, "public_tests": "{"}, "wanted a list or an object, or its JSON text"),
        ("traces", {**ADD, "messages": {"role": "user"}}, "'messages' must be a list of messages"),
        ("traces", {**ADD, "messages": ["hello"]}, "a message must be an object with 'role' and 'content'"),
        ("traces", {**ADD, "implementations": [1]}, "'programs' must be a list of programs"),
        ("fixes", {**FIX, "buggy_code": [1]}, "the field 'buggy' must be a string"),
        ("fixes", {**FIX, "setup_code": 1}, "the field 'setup' must be a string or a list of lines"),
        ("submissions", {**ADD, "user": 1, "code": "x", "time": "noon"}, "must be a number or an ISO date, not 'noon'"),
        ("trajectories", {**ADD, "versions": []}, "the field 'versions' is empty"),
        ("fixes", {**FIX, "style": "stdin"}, "style 'stdin' is for cases of input and output"),
    ],
)
def test_a_malformed_row_is_named_with_its_line(tmp_path, form, row, message):
    with pytest.raises(UserError, match=f"in.jsonl, line 1.*{message}"):
        run_import(tmp_path, form, [row])
    assert not (tmp_path / "out").exists()


def test_tests_that_need_pytest_are_said_to():
    found = task_tests.find_tests(
        {"test": "import pytest\n\ndef test_add(tmp_path):\n    assert add(1, 2) == 3\n"},
        Columns(forms.find_form("fixes").fields, {}),
        "",
        max_cases=1,
    )
    assert found.style == "pytest"


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("import sys\nn = int(sys.stdin.readline())\nsys.stdout.write(str(2 * n))\n", True),
        ("n = int(open(0).read())\nprint(2.0 * n)\n", True),
        ("import sys\nn = int(sys.stdin.buffer.read())\nsys.stdout.buffer.write(b'%d  \\n' % (2 * n))\n", True),
        ("import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint(2 * int(input()))\n", True),
        ("def main():\n    print(2 * int(input()))\n\nif __name__ == '__main__':\n    main()\n    exit()\n", True),
        ("print(2 * int(input()))\nimport sys\nsys.exit(1)\n", False),
        ("print(2 * int(input()), 0)\n", False),
        ("print('nan')\n", False),
        ("print(2 * int(input())\n", False),
        ("n = int(input())\nprint(n)\nprint(n)\n", False),
    ],
)
def test_programs_with_input_and_output_are_judged_by_what_they_print(code, passes):
    cases = json.dumps([{"input": "2\n", "output": "4\n"}, {"input": "7\n", "output": "14\n"}])
    with open_sandbox(SANDBOX) as sandbox:
        assert sandbox.run(Subject(style="stdin", setup="", tests=cases, code=code).program()).passed is passes


def test_the_document_names_every_form_and_column():
    text = (ROOT / "docs" / "import.md").read_text()
    missing = [
        alias
        for form in forms.FORMS
        for field in form.fields
        for alias in (field.name, *field.aliases)
        if f"`{alias}`" not in text
    ]
    assert missing == []
    assert all(f"## `{form.name}`" in text for form in forms.FORMS)
    assert all(f"`{reason.name}`" in text for reason in REASONS)


def test_cases_of_a_trajectory_are_checked(tmp_path):
    version = {"code": "print(1)\n", "passed": True}
    row = {**ADD, "versions": [version, version], "meta": {"style": "stdin"}, "test_code": '[{"input": 1}]'}
    with pytest.raises(UserError, match="add: 'test_code' of the style 'stdin': no list of objects"):
        run_import(tmp_path, "trajectories", [row])


def test_cases_that_silence_passes_are_no_tests(tmp_path):
    row = {**ECHO, "public_tests": {"input": ["1"], "output": ["\n"]}, "samples": ["print(1)", "print(2)"]}
    found, report = run_import(tmp_path, "problems", [row])
    assert report.dropped == {"no_tests": 1}
