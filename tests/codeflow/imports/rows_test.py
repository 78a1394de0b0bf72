"""What rows may look like: columns, words, tests and cases, and what is said of malformed ones."""

from __future__ import annotations

import json

import pytest

from iterpref_jax.codeflow import rows
from iterpref_jax.codeflow.imports import forms, problems, recorded, task_tests
from iterpref_jax.codeflow.imports.candidates import REASONS
from iterpref_jax.codeflow.imports.columns import Columns
from iterpref_jax.codeflow.runs import Subject
from iterpref_jax.codeflow.sandbox import open_sandbox
from iterpref_jax.errors import UserError
from tests.codeflow.imports.importing import (
    ADD,
    ECHO,
    FIX,
    RIGHT,
    ROOT,
    SANDBOX,
    WRONG,
    codes,
    run_import,
    write,
)


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
    others = ("Python 2", "python2.7", "java", "python 2 (2.7)", "Python (2.7.3)", "PyPy (2.4.0)", 1, "")
    assert not [name for name in others if recorded.is_python_3(name)]
    names = (
        "Python3",
        "python 3.11",
        "PyPy 3",
        "Python 3 (3.8)",
        "py",
        "python",
        3,
        "PyPy3-64",
        "Python (3.8.2)",
        "PyPy3 (2.4.0)",
    )
    assert [name for name in names if not recorded.is_python_3(name)] == []


def test_similarity_counts_common_lines_in_order():
    assert problems.similarity("a\nb\nc\n", "a\nc\nd\n") == pytest.approx(4 / 6)
    assert problems.similarity("a\nb\n", "b\na\n") == pytest.approx(0.5)


def test_csv_cells_may_hold_lines_and_rows_must_be_whole(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n"x\ny",1\n')
    assert list(rows.read_rows(path)) == [(f"{path}, row 1", {"a": "x\ny", "b": "1"})]
    with pytest.raises(UserError, match="names the column 'a' twice"):
        list(rows.read_rows(write(tmp_path / "c.csv", "a,b,a\n1,2,3\n")))
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
