"""The style "unittest", inside the child: the tests of one file, counted. A part of the harness that a request brings.

Standard library only; no import of ours.
"""

from __future__ import annotations

import sys
import unittest


def guarded(_, outcome) -> list:
    """Returns what a program may not replace, after its comparisons have been made to look at their values."""
    _look_in_assert_equal(outcome.look)
    return [unittest.TestCase, unittest.TestSuite, unittest.suite.BaseTestSuite, unittest.TestResult]


def run(harness, sources: dict[str, str], outcome, intact) -> None:
    space = harness.module("solution")
    for label in (harness.SETUP, harness.CODE):
        compiled = compile(sources[label], label, "exec", dont_inherit=True)
        if label == harness.CODE:
            outcome.watch(compiled)
        exec(compiled, space)
    if not intact():
        outcome.tamper("the code replaced builtins or unittest when it was imported")
        return
    tree = compile(sources[harness.TESTS], harness.TESTS, "exec", harness.ONLY_AST, dont_inherit=True)
    harness.look_at_equals(tree)
    space = harness.module("tests")
    space[harness.LOOK] = outcome.look
    exec(compile(tree, harness.TESTS, "exec", dont_inherit=True), space)  # type: ignore[arg-type]
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["tests"])
    found, result = suite.countTestCases(), _first_failure_result()
    suite.run(result)
    skipped = len(result.skipped)
    outcome.run = max(result.testsRun - skipped, 0)
    outcome.passed = max(outcome.run - result.bad, 0)
    if result.first is not None:
        raise result.first
    # A skipped class counts its tests as skipped but, since Python 3.12.1, not as run.
    if result.testsRun + skipped < found:
        outcome.tamper(f"{found} tests were found and {result.testsRun} run")
    elif not outcome.run:
        outcome.status = "no_tests"


def _look_in_assert_equal(look) -> None:
    test_case = unittest.TestCase
    chosen = test_case._getAssertEqualityFunc

    def choose(self, first, second):
        return chosen(self, look(first), look(second))

    test_case._getAssertEqualityFunc = choose


def _first_failure_result():
    class Result(unittest.TestResult):
        first, bad = None, 0

        def _note(self, error) -> None:
            self.bad += 1
            self.first = self.first or error[1]

        def addError(self, test, err) -> None:
            self._note(err)

        def addFailure(self, test, err) -> None:
            self._note(err)

        def addSubTest(self, test, subtest, err) -> None:
            if err is not None:
                self._note(err)

        def addUnexpectedSuccess(self, test) -> None:
            self._note((None, AssertionError(f"unexpected success of {test}")))

    return Result()
