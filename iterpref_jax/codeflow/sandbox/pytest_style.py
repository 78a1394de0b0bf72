"""The style "pytest", inside the child: pytest itself runs the tests of one file, which is never imported from disk.

A part of the harness that a request brings. Standard library and pytest only; no import of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
from _pytest import config

ENVIRON = os.environ
MODULE = "test_program"
FILE = f"{MODULE}.py"
NO_TESTS_COLLECTED = 5
OPTIONS = ("--assert=plain", "--capture=no", "--noconftest", "--rootdir=.", "-c", os.devnull)
PLUGINS_OFF = ("cacheprovider", "terminal", "faulthandler", "threadexception", "unraisableexception")


def guarded(harness, outcome) -> list:
    """Returns what a program may not replace: the modules of pytest and their classes, and those of unittest."""
    # pytest imports its own plugins by name when it starts: a program could have put others there.
    for name in config.default_plugins:
        importlib.import_module(f"_pytest.{name}")
    owners = harness.unittest_style.owners_of("pytest", "_pytest", "pluggy")
    return [*owners, type(ENVIRON), *harness.unittest_style.guarded(harness, outcome)]


def run(harness, sources: dict[str, str], outcome, intact) -> None:
    space = harness.module("solution")
    for label in (harness.SETUP, harness.CODE):
        compiled = compile(sources[label], label, "exec", dont_inherit=True)
        if label == harness.CODE:
            outcome.watch(compiled)
        exec(compiled, space)
    if not intact() or os.environ is not ENVIRON:
        outcome.tamper("the code replaced builtins or pytest when it was imported")
        return
    tree = compile(sources[harness.TESTS], harness.TESTS, "exec", harness.ONLY_AST, dont_inherit=True)
    wanted = set(_tests_of(tree))
    harness.look_at_equals(tree)
    space = harness.module(MODULE)
    space[harness.LOOK] = outcome.look
    exec(compile(tree, harness.TESTS, "exec", dont_inherit=True), space)  # type: ignore[arg-type]
    Path(FILE).touch()
    session = _Session(sys.modules[MODULE])
    _forget_plugins()
    off = (word for name in PLUGINS_OFF for word in ("-p", f"no:{name}"))
    code = pytest.main([*OPTIONS, *off, FILE], plugins=[session])
    # A test may be skipped and then fail in its teardown.
    outcome.run, outcome.passed = session.run, len(session.ended - session.skipped - session.failed)
    if session.first is not None:
        raise session.first
    if session.failed:
        raise AssertionError(session.words)
    _count(outcome, session, wanted, int(code))


def _forget_plugins() -> None:
    """pytest reads options and plugins from its environment when it starts; these would be the program's."""
    for name in [name for name in ENVIRON if name.startswith("PYTEST_")]:
        del ENVIRON[name]
    ENVIRON["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"


def _count(outcome, session, wanted: set[str], code: int) -> None:
    missing = wanted - session.names
    if session.found != len(session.ended) or missing:
        found = f"{session.found} tests were found, {len(session.ended)} run"
        outcome.tamper(found + (f"; not found: {', '.join(sorted(missing))[:200]}" if missing else ""))
    elif not outcome.run:
        outcome.status = "no_tests"
    elif code not in (0, NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with code {code}")


def _tests_of(tree):
    """Yields the names of the tests that pytest must find by its rules: `test*`, and those of classes `Test*`."""
    for node in tree.body:
        kind = type(node).__name__
        if kind == "ClassDef" and (node.name.startswith("Test") or _is_test_case(node)):
            names = [child.name for child in node.body if _is_test(child)]
            if "__init__" not in [getattr(child, "name", "") for child in node.body]:
                yield from (f"{node.name}.{name}" for name in names)
        elif _is_test(node):
            yield node.name


def _is_test(node) -> bool:
    if type(node).__name__ not in ("FunctionDef", "AsyncFunctionDef") or not node.name.startswith("test"):
        return False
    # A fixture may be called `test_data`.
    called = (getattr(decorator, "func", decorator) for decorator in node.decorator_list)
    return all((getattr(name, "attr", None) or getattr(name, "id", None)) != "fixture" for name in called)


def _is_test_case(node) -> bool:
    return any((getattr(base, "attr", None) or getattr(base, "id", None)) == "TestCase" for base in node.bases)


class _Session:
    """A plugin: hands out the module that is there already, and counts."""

    def __init__(self, module):
        self._module = module
        self.found, self.names, self.ended, self.failed, self.skipped = 0, set(), set(), set(), set()
        self.first, self.words = None, ""

    @property
    def run(self) -> int:
        return len(self.ended - self.skipped)

    def pytest_pycollect_makemodule(self, module_path, parent):
        module = self._module

        class Loaded(pytest.Module):
            def _getobj(self):
                return module

        return Loaded.from_parent(parent, path=module_path)

    def pytest_collection_finish(self, session) -> None:
        self.found = len({item.nodeid for item in session.items})
        for item in session.items:
            owner = getattr(item, "cls", None)
            name = getattr(item, "originalname", item.name)
            self.names.add(f"{owner.__name__}.{name}" if owner else name)

    def pytest_exception_interact(self, call) -> None:
        self.first = self.first or call.excinfo.value

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "teardown":
            self.ended.add(report.nodeid)
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.add(report.nodeid)
        if report.failed:
            self.failed.add(report.nodeid)
            self.words = self.words or str(report.longrepr)[:1000]
