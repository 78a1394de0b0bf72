"""How much of a program its tests run, and programs that pass only sometimes."""

import glob
import os
import subprocess

import pytest

from iterpref_jax.codeflow.sandbox import Program, line_coverage, open_sandbox
from tests.support.sandboxes import sandbox_settings

SETTINGS = sandbox_settings(cpu_s=4, output_kb=64)
CODE = '''"""Adds."""
import math

# Nothing.
def add(a, b):
    """Adds."""
    if a > 100:
        return 7
    return sum(
        x
        for x in (a, b)
    )

class Never:
    def method(self):
        return 1
'''
HEAD = "from solution import add\n"
TESTS = {
    "script": "assert add(1, 2) == 3\n",
    "unittest": HEAD
    + "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(add(1, 2), 3)\n",
    "pytest": HEAD + "def test_a(): assert add(1, 2) == 3\n",
}


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(SETTINGS) as opened:
        yield opened


def program(style="script", code=CODE, tests=None, coverage=True):
    return Program(code=code, tests=TESTS[style] if tests is None else tests, setup="", style=style, coverage=coverage)


@pytest.mark.parametrize("style", TESTS)
def test_the_lines_that_no_test_runs_are_missing(sandbox, style):
    verdict = sandbox.run(program(style))
    assert verdict.passed
    # `return 7` and `return 1`.
    assert verdict.lines_total - verdict.lines_covered == 2


def test_lines_that_run_in_threads_and_generators_count(sandbox):
    code = "import threading\ndef gen():\n    yield 1\n    yield 2\ndef add(a, b):\n    out = []\n"
    code += "    t = threading.Thread(target=lambda: out.extend(\n        gen()))\n"
    code += "    t.start(); t.join()\n    return sum(out)\n"
    verdict = sandbox.run(program(code=code))
    assert (verdict.status, verdict.lines_covered) == ("pass", verdict.lines_total)


def test_lines_are_counted_when_a_test_fails(sandbox):
    verdict = sandbox.run(program(tests="assert add(101, 0) == 0\n"))
    assert verdict.status == "fail"
    assert 0 < verdict.lines_covered < verdict.lines_total


def test_code_that_does_not_compile_has_no_lines(sandbox):
    verdict = sandbox.run(program(code="def add(:\n"))
    assert (verdict.lines_covered, verdict.lines_total) == (0, 0)


def test_nobody_counts_unasked(sandbox):
    verdict = sandbox.run(program(coverage=False))
    assert (verdict.lines_covered, verdict.lines_total) == (None, None)


NEWER = sorted(
    glob.glob(os.path.expanduser("~/.pyenv/versions/3.1[2-9]*/bin/python3")) + glob.glob("/usr/bin/python3.1[2-9]")
)


@pytest.mark.skipif(
    not NEWER, reason="there is no Python 3.12 or newer here, whose monitoring takes the place of tracing"
)
def test_a_newer_python_counts_the_same_lines():
    script = f"exec(open({line_coverage.__file__!r}).read())\ncode = compile({CODE!r}, '<code>', 'exec')\nwatch(code)\n"
    script += "exec(code)\nadd(1, 2)\nassert _monitoring\ncovered, total = map(int, counts())\nprint(total - covered)\n"
    ended = subprocess.run([NEWER[-1], "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout == "2\n", ended.stderr


FLAKY = "def add(a, b):\n    return a + b if next(iter({'a', 'b', 'c', 'd'})) in 'ab' else 0\n"


def seeds(sandbox):
    """A hash seed with which the program above passes, and the next one does not, or the one after that."""
    found = [sandbox.run(program(code=FLAKY), hash_seed=seed).passed for seed in range(12)]
    return next(seed for seed in range(10) if found[seed] and not all(found[seed : seed + 3])), found


def test_a_program_that_passes_only_with_some_hash_seeds_is_flaky(sandbox):
    first, found = seeds(sandbox)
    verdict = sandbox.run(program(code=FLAKY), check_flaky=True, hash_seed=first)
    said = tuple((seed, "pass" if found[seed] else "fail") for seed in range(first, first + 3))
    assert (verdict.status, verdict.by_seed) == ("flaky", said)
    assert not verdict.passed
    assert not verdict.failed
    assert f"hash seed {first}: pass; " in verdict.message


def test_a_program_that_passes_with_three_hash_seeds_passes(sandbox):
    (verdict,) = sandbox.run_all([program()], check_flaky=True)
    assert (verdict.status, verdict.by_seed) == ("pass", ((0, "pass"), (1, "pass"), (2, "pass")))


def test_a_program_that_fails_is_not_run_again(sandbox):
    verdict = sandbox.run(program(tests="assert add(1, 2) == 4\n"), check_flaky=True)
    assert (verdict.status, verdict.by_seed) == ("fail", ())
