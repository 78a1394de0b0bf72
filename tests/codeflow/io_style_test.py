"""The style "io": a function is called on inputs; what it gave is compared where no program is."""

import dataclasses
import math

import pytest

from iterpref_jax.codeflow.sandbox import UNKNOWN, Case, Comparator, Program, open_sandbox
from iterpref_jax.codeflow.sandbox.comparators import COMPARATORS
from iterpref_jax.errors import UserError
from tests.support.sandboxes import sandbox_settings

SETTINGS = sandbox_settings(wall_s=3.0, cpu_s=2, memory_mb=256, output_kb=64)
ADD = "def add(a, b):\n    return a + b\n"
SUMS = (Case(inputs=(2, 3), expected=5), Case(inputs=("a", "b"), expected="ab"))


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(SETTINGS) as opened:
        yield opened


def program(code, cases=SUMS, entry_point="add", setup="", compare=None):
    return Program(code=code, setup=setup, style="io", entry_point=entry_point, cases=cases, compare=compare)


def body(text):
    return program(f"import os, sys, time\ndef add(a, b):\n    {text}\n    return a + b\n")


def statuses(verdict):
    return [outcome.status for outcome in verdict.cases]


def test_right_outputs_pass_and_are_returned_with_their_times(sandbox):
    verdict = sandbox.run(program(ADD))
    assert (verdict.status, verdict.tests_run, verdict.tests_passed) == ("pass", 2, 2)
    assert [outcome.output for outcome in verdict.cases] == [5, "ab"]
    assert all(0 < outcome.seconds < verdict.seconds for outcome in verdict.cases)


def test_a_wrong_output_fails_its_case_and_no_other(sandbox):
    verdict = sandbox.run(program("def add(a, b):\n    return a + b if a == 2 else 7\n"))
    assert statuses(verdict) == ["pass", "fail"]
    assert (verdict.status, verdict.message) == ("fail", "case 1: exact: wanted 'ab', got 7")
    assert (verdict.tests_run, verdict.tests_passed) == (2, 1)


def test_an_exception_is_the_error_of_its_case_with_the_line_of_the_code(sandbox):
    cases = (Case(inputs=([], 0), expected=0), *SUMS)
    verdict = sandbox.run(program("def add(a, b):\n    return [a + b][0]\n", cases))
    assert statuses(verdict) == ["error", "pass", "pass"]
    assert (verdict.error_type, verdict.last_frame) == ("TypeError", "<code>:2 in add")
    assert verdict.traceback.startswith('Traceback (most recent call last):\n  File "<code>", line 2, in add\n')


@pytest.mark.parametrize(
    ("code", "error_type"),
    [("def add(a, b)\n", "SyntaxError"), ("def sub(a, b): pass\n", "NameError"), ("1 / 0\n", "ZeroDivisionError")],
)
def test_code_that_does_not_get_as_far_as_a_case_is_an_error_without_outcomes(sandbox, code, error_type):
    verdict = sandbox.run(program(code))
    assert (verdict.status, verdict.error_type, verdict.cases) == ("error", error_type, ())


def test_a_method_is_called_on_one_object_for_all_cases(sandbox):
    code = "class Solution:\n    def __init__(self):\n        self.n = 0\n    def count(self):\n        self.n += 1\n"
    code += "        return self.n\n"
    cases = tuple(Case(inputs=(), expected=n) for n in (1, 2))
    assert sandbox.run(program(code, cases, "Solution.count")).passed


def test_inputs_and_outputs_keep_their_types(sandbox):
    values = ((1,), [1], {1}, frozenset({1}), {1: 2}, b"x", True, None, 1.5, 2j, math.inf, 7**999, "\ud800\n")
    code = "kinds = []\ndef same(value):\n    return type(value).__name__, value\n"
    cases = tuple(Case(inputs=(value,), expected=(type(value).__name__, value)) for value in values)
    assert sandbox.run(program(code, cases, "same")).message == ""


def test_a_case_gets_inputs_that_no_case_before_it_has_changed(sandbox):
    given = [1, 2]
    cases = tuple(Case(inputs=(given,), expected=[1, 2, 0]) for _ in range(2))
    assert sandbox.run(program("def f(x):\n    x.append(0)\n    return x\n", cases, "f")).passed
    assert given == [1, 2]


def test_what_is_expected_does_not_enter_the_sandbox(sandbox):
    code = "import gc\ndef add(a, b):\n    return [x for x in gc.get_objects() if x == [40, 41, 42]]\n"
    verdict = sandbox.run(program(code, (Case(inputs=(1, 2), expected=[40, 41, 42]),)))
    assert verdict.cases[0].output == []


CHAMELEON = "class C(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (CHAMELEON + "def add(a, b): return C(9)\n", "fail"),
        ("class C:\n    def __eq__(self, other): return True\ndef add(a, b): return C()\n", "error"),
        ("class S(str):\n    def __eq__(self, other): return True\ndef add(a, b): return S('x')\n", "fail"),
        ("def add(a, b):\n    while True: yield a\n", "error"),
        ("def add(a, b):\n    x = []\n    x.append(x)\n    return x\n", "error"),
        ("def add(a, b): return 'x' * (1 << 20)\n", "output_limit"),
        ("def add(a, b): print('x' * (1 << 20))\n", "output_limit"),
        ("def add(a, b): return bytearray(1 << 30)\n", "memory_limit"),
        ("def add(a, b): return add(a, b)\n", "error"),
        ("import sys\nsys.setrecursionlimit(60)\ndef add(a, b): return [[[[a]]]]\n", "fail"),
        ("import sys\ndef add(a, b): sys.exit(0)\n", "error"),
        ("import os\ndef add(a, b): os._exit(0)\n", "early_exit"),
        ("import os\nos._exit(0)\n", "early_exit"),
        ("import os, signal\ndef add(a, b): os.kill(os.getpid(), signal.SIGKILL)\n", "early_exit"),
        ("import os\ndef add(a, b):\n    if os.fork(): os._exit(0)\n    return a + b\n", "early_exit"),
        ("def add(a, b):\n    while True: pass\n", "timeout"),
        ("import json\njson.dumps = lambda *a, **k: '9'\ndef add(a, b): return 6\n", "fail"),
        ("import json\njson.loads = lambda *a: [5, 0]\ndef add(a, b): return None\n", "fail"),
        ("import builtins\nbuiltins.type = lambda *a: int\ndef add(a, b): return None\n", "fail"),
        ("import time\ntime.perf_counter = lambda: 0\ndef add(a, b): return None\n", "fail"),
    ],
)
def test_a_program_that_would_rather_not_be_judged_is_not_right(sandbox, code, status):
    verdict = sandbox.run(program(code))
    assert verdict.status == status
    assert not any(outcome.passed for outcome in verdict.cases)


FORGERY = """
import os, time
def add(a, b):
    for fd in range(3, 256):
        try: os.write(fd, TEXT)
        except OSError: pass
    time.sleep(60)
"""


@pytest.mark.parametrize("text", [b"done\tpass\n", b"case\t0\tpass\t\t\t\t\t0.1\t5\n", b"x" * 100])
def test_a_report_without_the_token_is_tampered(sandbox, text):
    assert sandbox.run(program(FORGERY.replace("TEXT", repr(text)))).status == "tampered"


FRAMES = """
import sys
def add(a, b):
    frame = sys._getframe()
    while 'report' not in frame.f_locals:
        frame = frame.f_back
    REPORTS
    frame.f_locals['leave'](0)
"""


@pytest.mark.parametrize(
    ("reports", "status"),
    [
        ("frame.f_locals['report'](['done', 'pass', '', '', '', '', '2', '2', '0', '', ''])", "tampered"),
        ("frame.f_locals['report'](['case', '0', 'pass', '', '', '', '', '0', '9'])", "tampered"),
        ("frame.f_locals['report'](['case', '1', 'no_tests', '', '', '', '', '0', '9'])", "tampered"),
        ("for n in '012': frame.f_locals['report'](['case', n, 'no_tests', '', '', '', '', '0', '5'])", "tampered"),
        ("frame.f_locals['report'](['case', '0', 'no_tests', '', '', '', '', '0', '9'])", "fail"),
        ("frame.f_locals['report'](['case', '0', 'no_tests', '', '', '', '', '0', '{'])", "error"),
        *(
            (f"frame.f_locals['report'](['case', '0', 'no_tests', '', '', '', '', '{seconds}', '5'])", "tampered")
            for seconds in ("x", "nan", "inf", "-1")
        ),
    ],
)
def test_a_program_that_finds_the_report_has_no_more_to_say_than_outputs(sandbox, reports, status):
    verdict = sandbox.run(program(FRAMES.replace("REPORTS", reports)))
    assert verdict.status == status


def test_a_slow_case_is_stopped_at_its_own_limit(sandbox):
    code = "import time\ndef add(a, b):\n    time.sleep(b)\n    return a\n"
    cases = (Case(inputs=(1, 0), expected=1, wall_s=1.0), Case(inputs=(1, 60), expected=1, wall_s=0.2))
    verdict = sandbox.run(program(code, (*cases, *cases)))
    assert (verdict.status, statuses(verdict)) == ("timeout", ["pass"])
    assert verdict.seconds < 1.5


def test_the_outcomes_before_a_sudden_end_are_kept(sandbox):
    verdict = sandbox.run(body("if a == 'a': os._exit(0)"))
    assert (verdict.status, statuses(verdict)) == ("early_exit", ["pass"])


def test_a_reference_solution_answers_in_the_same_way(sandbox):
    cases = sandbox.answered(program(ADD, tuple(dataclasses.replace(case, expected=UNKNOWN) for case in SUMS)))
    assert cases == SUMS
    with pytest.raises(UserError, match="case 0: unsupported operand"):
        sandbox.answered(program(ADD, (Case(inputs=(1, "a"), expected=UNKNOWN),)))


def test_a_case_of_which_nothing_is_expected_is_not_a_pass(sandbox):
    verdict = sandbox.run(program(ADD, (SUMS[0], Case(inputs=(1, 2), expected=UNKNOWN))))
    assert (verdict.status, statuses(verdict)) == ("no_tests", ["pass", "no_tests"])
    assert verdict.cases[1].output == 3


def test_a_stub_that_is_right_everywhere_makes_the_cases_vacuous(sandbox):
    cases = (Case(inputs=(1, 2), expected=None),)
    assert sandbox.run(program("def add(a, b):\n    return\n", cases), check_vacuous=True).status == "vacuous"
    assert sandbox.run(program(ADD), check_vacuous=True).passed


def test_an_oracle_sees_inputs_and_output_and_its_exception_is_a_fail(sandbox):
    oracle = Comparator(name="root", holds=lambda inputs, output, _: abs(output**2 - inputs[0]) < 1e-6)
    cases = (Case(inputs=(2,), expected=None), Case(inputs=(9,), expected=None))
    right = program("def root(x):\n    return -x ** 0.5\n", cases, "root", compare=oracle)
    assert sandbox.run(right).passed
    verdict = sandbox.run(dataclasses.replace(right, code="def root(x):\n    return 'x'\n"))
    assert verdict.status == "fail"
    assert verdict.message.startswith("case 0: comparator root: TypeError")


def test_an_output_that_cannot_be_compared_is_an_error_that_names_its_type(sandbox):
    match = program("import re\ndef f(x):\n    return [re.match('a', x)]\n", (Case(inputs=("a",), expected=True),), "f")
    assert sandbox.run(match).message == "case 0: an output of type re.Match cannot be compared"
    assert sandbox.run(dataclasses.replace(match, compare=COMPARATORS["not_none"])).passed


def test_a_type_whose_name_is_no_unicode_is_named_in_escapes(sandbox):
    code = "class E:\n    __module__ = '\\ud800'\ndef f(x):\n    return E()\n"
    odd = program(code, (Case(inputs=(1,), expected=True),), "f")
    assert sandbox.run(odd).message == r"case 0: an output of type \ud800.E cannot be compared"
    lenient = Comparator(name="same", holds=lambda _, output, wanted: output is wanted, takes_opaque=True)
    assert (
        sandbox.run(dataclasses.replace(odd, compare=lenient)).message == r"case 0: same: wanted True, got <\ud800.E>"
    )

    def refuse(inputs, output, expected):
        raise ValueError(output.type_name)

    angry = Comparator(name="angry", holds=refuse, takes_opaque=True)
    message = sandbox.run(dataclasses.replace(odd, compare=angry)).message
    assert message == r"case 0: comparator angry: ValueError: \ud800.E"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": ()}, "has cases"),
        ({"entry_point": ""}, "has entry_point"),
        ({"tests": "assert True"}, "has no tests"),
        ({"coverage": True}, "has no coverage"),
        ({"style": "script"}, "has no cases, no entry_point"),
        ({"cases": (Case(inputs=(object(),), expected=1),)}, "no form for type object"),
    ],
)
def test_a_program_that_its_style_cannot_run_is_refused(sandbox, changes, message):
    with pytest.raises(UserError, match=message):
        sandbox.run(dataclasses.replace(program(ADD), **changes))
