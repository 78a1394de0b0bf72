"""The style "unittest", inside the child: the tests of one file, counted. A part of the harness that a request brings.

Standard library only; no import of ours.
"""

from __future__ import annotations

import sys
import unittest

# Made before the program runs: the default one is an object that a program could change.
LOADER = unittest.TestLoader()


def guarded(_, outcome) -> list:
    """Returns what a program may not replace, after its comparisons have been made to look at their values."""
    _look_in_assert_equal(outcome.look)
    return owners_of("unittest")


def owners_of(*packages: str) -> list:
    """Returns the modules of these packages that are loaded, and the classes that were made in them."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] in packages and module]
    classes = {found for module in modules for found in vars(module).values() if isinstance(found, type)}
    return [*modules, *(found for found in classes if found.__module__.split(".")[0] in packages)]


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
    wanted = set(_tests_of(tree))
    harness.look_at_equals(tree)
    space = harness.module("tests")
    space[harness.LOOK] = outcome.look
    exec(compile(tree, harness.TESTS, "exec", dont_inherit=True), space)  # type: ignore[arg-type]
    suite = LOADER.loadTestsFromModule(sys.modules["tests"])
    found, result = suite.countTestCases(), _first_failure_result()
    missing = wanted - set(_names_in(suite))
    suite.run(result)
    skipped = len(result.skipped)
    outcome.run = max(result.testsRun - skipped, 0)
    outcome.passed = max(outcome.run - result.bad, 0)
    if result.first is not None:
        raise result.first
    # A skipped class counts its tests as skipped but, since Python 3.12.1, not as run.
    if result.testsRun + skipped < found:
        outcome.tamper(f"{found} tests were found and {result.testsRun} run")
    elif missing:
        outcome.tamper(f"tests were not found: {', '.join(sorted(missing))[:200]}")
    elif not outcome.run:
        outcome.status = "no_tests"


def _tests_of(tree):
    """Yields the names of tests that unittest must find: those that nothing in the tests could take away again.

    A decorator (of `parameterized`, say) may put others in the place of what it is given, and `load_tests` may choose.
    """
    names = [getattr(node, "name", "") for node in tree.body]
    if "load_tests" in names:
        return
    gone = {getattr(name, "id", "") for node in tree.body for name in getattr(node, "targets", ())}
    for node in tree.body:
        if type(node).__name__ != "ClassDef" or node.decorator_list or node.keywords or node.name in gone:
            continue
        bases = [getattr(base, "attr", None) or getattr(base, "id", None) for base in node.bases]
        # A class of the same name further down takes its place.
        if bases != ["TestCase"] or names.count(node.name) > 1:
            continue
        for child in node.body:
            is_function = type(child).__name__ in ("FunctionDef", "AsyncFunctionDef")
            if is_function and child.name.startswith("test") and not child.decorator_list:
                yield f"{node.name}.{child.name}"


def _names_in(tests):
    for test in tests:
        if isinstance(test, unittest.BaseTestSuite):
            yield from _names_in(test)
        else:
            yield f"{type(test).__name__}.{test._testMethodName}"


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
