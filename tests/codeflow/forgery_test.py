"""Programs that forge what judges them in their own process, and honest ones that look a little like these."""

from __future__ import annotations

import dataclasses

import pytest

from iterpref_jax.codeflow.sandbox import Program, open_sandbox
from tests.support.sandboxes import ADD, SHORT, script

UNITTEST = "import unittest\nfrom solution import add\nclass T(unittest.TestCase):\n"


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(SHORT) as opened:
        yield opened


FOUND = """
import os, sys, time
frame = sys._getframe()
while frame.f_code.co_name != "main":
    frame = frame.f_back
fields = [frame.f_locals["token"], "done", "pass", "", "", "", "", *COUNTS]
os.write(int(frame.f_locals["fd"]), "\\t".join(fields).encode() + b"\\n")
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        (("2", "2", "1.5", "", ""), "pass"),
        (("2", "1", "1.5", "3", "4"), "pass"),
        (("2", "2", "nan", "", ""), "tampered"),
        (("2", "2", "inf", "", ""), "tampered"),
        (("2", "2", "-1", "", ""), "tampered"),
        (("2", "3", "1.5", "", ""), "tampered"),
        (("2", "-1", "1.5", "", ""), "tampered"),
        (("2", "2", "1.5", "9" * 400, "1"), "tampered"),
        (("2", "2", "1.5", "1", ""), "tampered"),
    ],
)
def test_a_program_that_finds_its_token_has_no_numbers_to_say_that_cannot_be(sandbox, counts, status):
    assert sandbox.run(script(FOUND.replace("COUNTS", repr(counts)))).status == status


NEED = "def need(x):\n    if not x:\n        raise ValueError\n"


def test_a_raise_is_a_check_where_there_is_no_other(sandbox):
    nothing = "def f(n):\n    return []\n"
    assert sandbox.run(script(nothing, NEED + "for x in f(3):\n    assert x > 0\n")).status == "no_tests"
    verdict = sandbox.run(script(ADD, NEED + "need(add(1, 2) == 3)\n"))
    assert (verdict.status, verdict.tests_run) == ("pass", 1)
    verdict = sandbox.run(script(ADD, NEED + "need(add(1, 2) == 3)\nassert add(1, 1) == 2\n"))
    assert (verdict.status, verdict.tests_run) == ("pass", 1)


TABLE = "assert all(add(n, 1) == n + 1 for n in range(3))\nassert abs(add(1, 2) - 3) < 0.1\n"


@pytest.mark.parametrize(
    ("code", "tests", "setup", "status"),
    [
        ("all = lambda xs: True\n", TABLE, "", "tampered"),
        ("def abs(x):\n    return 0\n", TABLE, "", "tampered"),
        ("class abs(int):\n    pass\n", "check(add)\n", "def check(f):\n    assert abs(f(1, 2)) == 3\n", "tampered"),
        ("from numpy import *\nfrom math import pow\n", TABLE + "assert pow(add(1, 1), 2) == 4\n", "", "pass"),
        ("def max(a, b):\n    return a\ninput = print = None\n", TABLE, "", "pass"),
        ("def f():\n    all = abs = 1\n", TABLE, "", "pass"),
        ("all = 1\n", "def all(xs):\n    return sorted(xs) == [True] * 3\n" + TABLE, "", "pass"),
        ("def sum(a, b):\n    return a + b\n", "assert sum(1, 2) == 3\n", "", "pass"),
    ],
)
def test_a_builtin_that_the_tests_call_is_not_the_programs(sandbox, code, tests, setup, status):
    assert sandbox.run(script(code + ADD, tests, setup)).status == status


FAKE = (
    "import sys, types, unittest\nclass F(unittest.TestCase):\n    assertEqual = lambda *a, **k: None\n"
    "    def test(self): pass\n"
)


@pytest.mark.parametrize(
    "code",
    [
        "unittest.TestCase = F\n",
        "unittest.case.TestCase = F\n",
        "fake = types.ModuleType('unittest')\nfake.TestCase = F\nsys.modules['unittest'] = fake\n",
        "unittest.TestLoader.loadTestsFromModule = lambda *a, **k: unittest.TestSuite([F('test')])\n",
        "unittest.TestLoader.testMethodPrefix = 'test_b'\n",
    ],
)
def test_a_program_that_replaces_unittest_is_tampered(sandbox, code):
    tests = UNITTEST + "    def test_a(self): self.assertEqual(add(1, 2), 3)\n    def test_b(self): pass\n"
    code = FAKE + code + "def add(a, b):\n    return None\n"
    assert sandbox.run(Program(code=code, tests=tests, setup="", style="unittest")).status == "tampered"


def test_the_default_loader_of_unittest_is_not_asked(sandbox):
    code = FAKE + "unittest.defaultTestLoader.loadTestsFromModule = lambda *a: unittest.TestSuite([F('test')])\n"
    tests = UNITTEST + "    def test_a(self): self.assertEqual(add(1, 2), 3)\n"
    run = Program(code=code + "def add(a, b):\n    return None\n", tests=tests, setup="", style="unittest")
    assert sandbox.run(run).status == "fail"
    assert sandbox.run(dataclasses.replace(run, code=code + ADD)).passed


HONEST = """
import unittest
from unittest import mock
from solution import add

unittest.util._MAX_LENGTH = 1000
unittest.TestLoader.sortTestMethodsUsing = None
unittest.TestCase.maxDiff = None

def renamed(cls):
    cls.test_other = cls.test_one
    del cls.test_one
    return cls

class Base(unittest.TestCase):
    def test_base(self): self.assertEqual(self.wanted, add(1, 2))

class Sum(Base):
    @classmethod
    def setUpClass(cls): cls.wanted = 3

    def setUp(self): self.seen = mock.Mock(return_value=[add(1, 2), 4])

    @mock.patch("solution.add", return_value=7)
    def test_patched(self, fake):
        import solution
        self.assertEqual(solution.add(1, 2), 7)
        self.assertEqual(fake.call_args_list, [mock.call(1, 2)])

    def test_any(self): self.assertEqual(self.seen(1), [mock.ANY, 4])

    def test_sub(self):
        for n in range(3):
            with self.subTest(n=n), mock.patch.dict("sys.modules", {"other": mock.MagicMock()}):
                self.assertEqual(add(n, 1), n + 1)

@renamed
class Renamed(unittest.TestCase):
    def test_one(self): self.assertEqual(add(1, 1), 2)

class Async(unittest.IsolatedAsyncioTestCase):
    async def test_async(self): self.assertEqual(add(1, 1), 2)

del Base
"""


def test_what_honest_unittest_files_do_is_no_tampering(sandbox):
    verdict = sandbox.run(Program(code=ADD, tests=HONEST, setup="", style="unittest"))
    assert (verdict.status, verdict.message, verdict.tests_run) == ("pass", "", 6)
