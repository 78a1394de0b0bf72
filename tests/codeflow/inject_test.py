"""Histories made of injected bugs, and the mutations that they are made of."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iterpref_jax.codeflow import mutations
from iterpref_jax.codeflow.endpoint import open_journal
from iterpref_jax.codeflow.inject import InjectReport, InjectSettings, Task, inject
from iterpref_jax.codeflow.mutations import Edit, apply_edits, find_edits
from iterpref_jax.codeflow.runs import Judge
from iterpref_jax.codeflow.sandbox import Program, open_sandbox
from iterpref_jax.errors import UserError
from tests.support.sandboxes import sandbox_settings

SANDBOX = sandbox_settings(wall_s=3.0, cpu_s=1, memory_mb=256)
SETTINGS = InjectSettings(histories_per_task=4, max_bugs=3, seed=0)
CLAMP = """\
def clamp(values, low, high):
    result = []
    for value in values:   # keep   this spacing
        if value < low and low is not None:
            value = low
        elif value > high:
            value = high
        result.append( value )
    return result
"""
CLAMP_TASK = Task(
    task_id="clamp",
    source="test",
    instruction="Clamp values.",
    code=CLAMP,
    test_code="assert clamp([1, 5, 9], 2, 6) == [2, 5, 6]\nassert clamp([], 0, 1) == []\n",
    setup_code="",
)


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(SANDBOX) as opened:
        yield opened


@pytest.fixture
def judge(sandbox, tmp_path):
    with open_journal(tmp_path / "journal.sqlite") as journal:
        yield Judge(sandbox, journal, SANDBOX)


@pytest.fixture(scope="module")
def histories(sandbox, tmp_path_factory):
    with open_journal(tmp_path_factory.mktemp("histories") / "journal.sqlite") as journal:
        return list(inject([CLAMP_TASK], SETTINGS, Judge(sandbox, journal, SANDBOX)))


def mutants(mutation: str, code: str) -> set[str]:
    return {apply_edits(code, [edit]) for edit in find_edits(code)[mutation]}


@pytest.mark.parametrize(
    ("mutation", "code", "expected"),
    [
        ("operator", "x = (a) + b", {"x = (a) - b"}),
        ("operator", "x //= 2", {"x /= 2"}),
        ("operator", "x = a ** -b", {"x = a * -b"}),
        ("comparison", "x = a <= b", {"x = a < b", "x = a >= b"}),
        ("comparison", "x = a  not   in b", {"x = a  in b"}),
        ("comparison", "x = 0 < a == b", {"x = 0 <= a == b", "x = 0 > a == b", "x = 0 < a != b"}),
        ("and_or", "x = a and (b or c)", {"x = a or (b or c)", "x = a and (b and c)"}),
        ("off_by_one", "x = 7", {"x = 8", "x = 6"}),
        ("off_by_one", "x = 0", {"x = 1"}),
        ("off_by_one", "x = True", set()),
        ("wrong_constant", "x = None", {"x = False"}),
        ("wrong_string", "x = 'aé'", {"x = 'AÉ'", "x = 'a'"}),
        ("wrong_string", "x = r'a\\d' '''b'''", set()),
        ("wrong_name", "def f(a, b):\n    return a\n", {"def f(a, b):\n    return b\n"}),
        ("wrong_name", "def f(a, b):\n    return len\n", set()),
        (
            "misspelt_name",
            "def f(abc):\n    return abc\n",
            {f"def f(abc):\n    return {x}\n" for x in ("ab", "abcs", "acb")},
        ),
        ("wrong_call", "x.append(max(y))", {"x.extend(max(y))", "x.append(min(y))"}),
        ("swapped_arguments", "f(a, b + 1, *c)", {"f(b + 1, a, *c)"}),
        ("swapped_operands", "x = a - b", {"x = b - a"}),
        ("swapped_branches", "x = a if c else b", {"x = b if c else a"}),
        ("swapped_branches", "if c:\n    a()\nelse:\n    b()\n", {"if c:\n    b()\nelse:\n    a()\n"}),
        ("swapped_branches", "if c:\n    a()\nelif d:\n    b()\n", set()),
        ("negated_condition", "if not a:\n    b()\n", {"if a:\n    b()\n"}),
        ("negated_condition", "while a < b:\n    c()\n", {"while not (a < b):\n    c()\n"}),
        ("wrong_bound", "range(n)", {"range(n - 1)", "range(n + 1)", "range(1, n)"}),
        ("wrong_bound", "x[i:]", {"x[i - 1:]", "x[i + 1:]"}),
        ("missing_return", "def f(a):\n    return a\n", {"def f(a):\n    a\n"}),
        ("missing_import", "import math\nx = 1\n", {"x = 1\n"}),
        ("dropped_statement", "def f(a):\n    a += 1\n    return a\n", {"def f(a):\n    return a\n"}),
        ("dropped_statement", "for a in b:\n    a()\n", {"for a in b:\n    pass\n"}),
        ("dropped_statement", "def f(a):\n    a += 1; b()\n    return a\n", set()),
        ("duplicated_statement", "a += 1", {"a += 1\na += 1"}),
        ("duplicated_statement", "a = 1\nb = b * 2\n", {"a = 1\nb = b * 2\nb = b * 2\n"}),
    ],
)
def test_each_mutation_makes_its_bug_and_no_other(mutation, code, expected):
    assert mutants(mutation, code) == expected


def test_every_mutation_is_tried_above():
    marks = test_each_mutation_makes_its_bug_and_no_other.pytestmark
    assert {case[0] for case in marks[0].args[1]} == set(mutations.MUTATIONS)


def test_annotations_docstrings_decorators_and_fstrings_are_left_alone():
    code = '@d(1)\ndef f(a: "x" = None) -> True:\n    """Doc 1."""\n    return f"{a + 1}"\n'
    found = {name: edits for name, edits in find_edits(code).items() if edits}
    assert set(found) == {"wrong_constant", "missing_return"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_edit_leaves_the_rest_of_the_text_alone(newline):
    code = ("# é ü 漢字\n" + CLAMP).replace("\n", newline)
    for edits in find_edits(code).values():
        for edit in edits:
            mutant = apply_edits(code, [edit])
            assert mutant.startswith(code[: edit.start])
            assert mutant.endswith(code[edit.end :])
            assert len(mutant) == len(code) - (edit.end - edit.start) + len(edit.text)
            assert 1 <= len(set(mutant.split(newline)) ^ set(code.split(newline))) + (edit.mutation[:3] == "dup") <= 8


def test_every_edit_is_still_python():
    edits = [edit for group in find_edits(CLAMP).values() for edit in group]
    assert len(edits) > 30
    for edit in edits:
        ast.parse(apply_edits(CLAMP, [edit]))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.text("xyz", max_size=3)), max_size=5))
def test_edits_that_do_not_touch_can_be_made_in_any_order(raw):
    code = "".join(chr(ord("A") + n % 26) for n in range(40))
    edits: list[Edit] = []
    for start, length, text in raw:
        edit = Edit(start=start, end=start + length, text=text, mutation="m")
        if not any(edit.touches(other) for other in edits):
            edits.append(edit)
    expected = list(code)
    for edit in edits:
        expected[edit.start : edit.end] = [""] * (edit.end - edit.start)
        expected[edit.start] = edit.text + expected[edit.start]
    assert apply_edits(code, edits) == apply_edits(code, reversed(edits)) == "".join(expected)


def test_a_history_fails_until_its_last_version_which_is_the_tasks_code(histories):
    assert len(histories) == SETTINGS.histories_per_task
    for history in histories:
        assert [version.passed for version in history.versions] == [False] * (len(history.versions) - 1) + [True]
        assert history.versions[-1].code == CLAMP


def test_the_verdicts_of_a_history_are_those_of_its_versions(histories, sandbox):
    for history in histories:
        for version in history.versions:
            verdict = sandbox.run(Program(code=version.code, tests=history.test_code, setup="", style="script"))
            assert verdict.passed == version.passed
            assert (verdict.error_type or None) == version.error_type
            assert verdict.traceback == version.stderr_tail


def test_bugs_are_undone_one_by_one(histories):
    assert any(len(history.versions) > 2 for history in histories)
    for history in histories:
        assert len(history.versions) == len(history.meta["mutations"]) + 1
        distances = [changed_lines(version.code, CLAMP) for version in history.versions]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] == 0


def changed_lines(old: str, new: str) -> int:
    return sum(line[0] in "+-" for line in difflib.ndiff(old.splitlines(), new.splitlines()))


def test_histories_of_a_task_end_in_different_bugs_and_share_the_task(histories):
    assert len({history.versions[-2].code for history in histories}) == len(histories)
    assert {history.task for history in histories} == {"clamp"}
    assert len({history.task_id for history in histories}) == len(histories)


def test_equal_seeds_give_equal_histories_and_other_seeds_others(histories, judge):
    assert list(inject([CLAMP_TASK], SETTINGS, judge)) == histories
    other = InjectSettings(histories_per_task=4, max_bugs=3, seed=1)
    assert list(inject([CLAMP_TASK], other, judge)) != histories


def test_the_bugs_drawn_do_not_depend_on_the_processs_hash_seed():
    program = (
        "from iterpref_jax.codeflow import inject; from tests.codeflow.inject_test import CLAMP_TASK, SETTINGS\n"
        "plan = inject._Plan(CLAMP_TASK, SETTINGS); plan.ready(); print(plan.draw())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def task(task_id: str, code: str, test_code: str) -> Task:
    return Task(task_id=task_id, source="", instruction="", code=code, test_code=test_code, setup_code="")


@pytest.mark.parametrize(
    ("code", "test_code", "reason"),
    [
        ("def f():\n    return 1\n", "assert f() == 2\n", "fail: AssertionError"),
        ("def f():\n    return 1\n", "f()\n", "no_tests"),
        ("def f():\n    return 1\n", "f()\nassert True\n", "vacuous"),
        ("def f():\n    return 1\n", "assert f() is not None\n", "no mutant fails"),
        ("def f(:\n", "assert f()\n", "error: SyntaxError"),
        ("def f():\n    return 1\n", "import os\nassert os.environ['PYTHONHASHSEED'] != '2'\nassert f()\n", "fail"),
    ],
)
def test_a_task_that_cannot_be_used_is_skipped_with_the_reason(judge, code, test_code, reason):
    report, seen = InjectReport(), []
    bad, good = task("bad", code, test_code), CLAMP_TASK
    made = list(inject([bad, good], SETTINGS, judge, report=report, on_task=lambda t, n: seen.append((t.task_id, n))))
    assert list(report.skipped) == ["bad"]
    assert reason in report.skipped["bad"]
    assert seen == [("bad", 0), ("clamp", len(made))]
    assert (report.tasks, report.trajectories) == (2, len(made))


def test_versions_without_a_verdict_are_counted_and_left_out(judge):
    # `a[1:1]` is empty, so the loop of the tests checks nothing, which is neither right nor wrong.
    code = "def f():\n    a = [1, 2]\n    return a[1:2]\n"
    report = InjectReport()
    settings = InjectSettings(histories_per_task=50, max_bugs=2, seed=0)
    tests = "for a in f():\n    assert a in (1, 2)\n"
    made = list(inject([task("t", code, tests)], settings, judge, report=report))
    assert report.unjudged["no_tests"] > 0
    assert {version.error_type for history in made for version in history.versions} & {"no_tests", ""} == set()


def test_mutants_that_pass_are_counted_and_left_out(judge):
    code = "def f(a):\n    b = a\n    return a\n"
    report = InjectReport()
    settings = InjectSettings(histories_per_task=50, max_bugs=1, seed=0)
    made = list(inject([task("t", code, "assert f(3) == 3\n")], settings, judge, report=report))
    # `b` is unused, so its line may go; reading it before it exists may not.
    assert {history.versions[0].code.splitlines()[1] for history in made} == {"    b = a", "    b = b"}
    assert report.survived["dropped_statement"] == 1
    assert report.survived.total() + report.killed.total() == report.tried.total()
    assert report.killed.total() == len(made) == report.endings.total()
    assert report.versions == 2 * len(made)


def test_a_stacked_version_that_happens_to_pass_is_left_out(judge):
    # Two bugs that cancel: a + 1 - 1.
    code = "def f(a):\n    a = a + 1\n    return a - 1\n"
    report = InjectReport()
    settings = InjectSettings(histories_per_task=60, max_bugs=2, seed=0)
    made = list(inject([task("t", code, "assert f(3) == 3\nassert f(0) == 0\n")], settings, judge, report=report))
    assert report.middle_passed > 0
    assert all(not version.passed for history in made for version in history.versions[:-1])


@pytest.mark.parametrize("name", ["histories_per_task", "max_bugs"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"inject.{name}: wanted at least 1, got 0"):
        dataclasses.replace(SETTINGS, **{name: 0})
