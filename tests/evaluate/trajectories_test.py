"""Trajectories as a benchmark: tests of every style, judged as the importer judges them."""

import dataclasses
import json

import pytest

from iterpref_jax.codeflow.sandbox import open_sandbox
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import benchmarks, evaluation, samples
from tests.evaluate import made

ADDS = "def add(a, b):\n    return a + b\n"
UNITTEST = "import unittest\nfrom solution import *\n\nclass T(unittest.TestCase):\n    def test(self):\n        "
# meta.style ("" for none) -> a program that passes, and its tests.
STORED = {
    "": (ADDS, "assert add(1, 2) == 3\n"),
    "script": (ADDS, "assert add(1, 2) == 3\n"),
    "unittest": (ADDS, UNITTEST + "self.assertEqual(add(1, 2), 3)\n"),
    "pytest": (ADDS, "from solution import add\n\ndef test():\n    assert add(1, 2) == 3\n"),
    "stdin": ("print(sum(map(int, input().split())))\n", json.dumps([{"input": "1 2\n", "output": "3"}])),
}


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(made.SANDBOX) as opened:
        yield opened


def stored(folder, style, **changes):
    """The benchmark of one trajectory whose tests are of this style."""
    code, tests = STORED.get(style, STORED["script"])
    row = {"task_id": "add", "instruction": "Add.", "test_code": tests, "versions": [{"code": code, "passed": True}]}
    path = made.write_lines(folder / "t.jsonl", [row | {"meta": {"style": style} if style else {}} | changes])
    return benchmarks.load("trajectories", path, made.CHOICE)


def outcome(benchmark, sandbox, folder):
    """What came of the last version."""
    folder.mkdir()
    evaluation.store(evaluation.canonical(benchmark), folder)
    assert evaluation.judge(made.settings(), benchmark, sandbox, folder, lambda: False)
    return samples.read_verdicts(folder / samples.VERDICTS)["add", 0].judged.outcomes[0]


@pytest.mark.parametrize("style", STORED)
def test_a_trajectory_is_judged_in_the_style_of_its_tests(sandbox, style, tmp_path):
    benchmark = stored(tmp_path, style)
    (task,) = benchmark.tasks
    wrong = dataclasses.replace(task, canonical=task.canonical.replace("+", "-").replace("sum", "max"))
    assert outcome(benchmark, sandbox, tmp_path / "right").status == "pass"
    failed = outcome(dataclasses.replace(benchmark, tasks=(wrong,)), sandbox, tmp_path / "wrong")
    assert failed.error_type == "AssertionError"
    assert style != "stdin" or failed.message == "for '1 2\\n' gave '2\\n', wanted '3'"


@pytest.mark.parametrize(
    ("style", "changes", "message"),
    [
        ("unitest", {}, r"t\.jsonl: add: meta\.style 'unitest' is not known; did you mean 'unittest'\?; known: script"),
        ("io", {}, "meta.style 'io' is not known"),
        ("stdin", {"test_code": "assert 1"}, r"t\.jsonl: add: 'test_code' of the style 'stdin'"),
    ],
)
def test_a_trajectory_whose_tests_are_of_no_known_style_is_refused(style, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        stored(tmp_path, style, **changes)
