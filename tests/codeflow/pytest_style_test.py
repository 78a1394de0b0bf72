"""The style "pytest": real pytest runs the tests, all that were written, and nothing else decides."""

import pytest

from iterpref_jax.codeflow.sandbox import Program, open_sandbox, request
from iterpref_jax.errors import UserError
from tests.support.sandboxes import sandbox_settings

SETTINGS = sandbox_settings(cpu_s=2, output_kb=64)
ADD = "def add(a, b):\n    return a + b\n"
HEAD = "import pytest\nfrom solution import add\n"
RIGHT = "def test_add():\n    assert add(1, 2) == 3\n"


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(SETTINGS) as opened:
        yield opened


def program(tests, code=ADD, setup=""):
    return Program(code=code, tests=HEAD + tests, setup=setup, style="pytest")


ALL_KINDS = """
@pytest.fixture
def test_data():
    return 1, 2

@pytest.mark.parametrize("a, b, c", [(1, 2, 3), (2, 2, 4)])
def test_table(a, b, c):
    assert add(a, b) == c

class TestAdd:
    def test_fixtures(self, test_data, tmp_path, monkeypatch, capsys):
        print(add(*test_data))
        assert capsys.readouterr().out == "3\\n"

def test_raises():
    with pytest.raises(TypeError):
        add(1, "a")
    assert add(0.1, 0.2) == pytest.approx(0.3)

import unittest

class Case(unittest.TestCase):
    def test_case(self):
        self.assertEqual(add(1, 2), 3)
"""


def test_what_pytest_can_run_is_run_and_counted(sandbox):
    verdict = sandbox.run(program(ALL_KINDS))
    assert (verdict.status, verdict.message) == ("pass", "")
    assert (verdict.tests_run, verdict.tests_passed) == (5, 5)


@pytest.mark.parametrize(
    ("tests", "status", "error_type", "counts"),
    [
        ("def test_a(): assert add(1, 2) == 4\n" + RIGHT, "fail", "AssertionError", (2, 1)),
        ("def test_a(): add(1, 'a')\n" + RIGHT, "error", "TypeError", (2, 1)),
        ("def test_a(nothing): pass\n", "error", "FixtureLookupError", (1, 0)),
        ("@pytest.fixture\ndef f(): raise ValueError\ndef test_a(f): pass\n", "error", "ValueError", (1, 0)),
        (
            "@pytest.fixture\ndef f():\n    yield\n    raise ValueError\ndef test_a(f): pass\n",
            "error",
            "ValueError",
            (1, 0),
        ),
        (
            "@pytest.fixture\ndef f():\n    yield\n    raise ValueError\ndef test_a(f): pytest.skip('no')\n",
            "error",
            "ValueError",
            (0, 0),
        ),
        ("@pytest.mark.xfail(strict=True)\n" + RIGHT, "fail", "AssertionError", (1, 0)),
        ("@pytest.mark.xfail\ndef test_a(): assert add(1, 2) == 4\n", "pass", "", (1, 1)),
        ("@pytest.mark.skip\n" + RIGHT, "no_tests", "", (0, 0)),
        ("@pytest.mark.skip\n" + RIGHT + "def test_b(): assert add(1, 1) == 2\n", "pass", "", (1, 1)),
        ("@pytest.mark.parametrize('x', [])\ndef test_a(x): pass\n", "no_tests", "", (0, 0)),
        ("", "no_tests", "", (0, 0)),
        ("import nothing_like_it\n", "error", "ModuleNotFoundError", (0, 0)),
        ("def test_a(\n", "error", "SyntaxError", (0, 0)),
    ],
)
def test_files_are_judged_by_their_tests(sandbox, tests, status, error_type, counts):
    verdict = sandbox.run(program(tests))
    assert (verdict.status, verdict.error_type, verdict.tests_run, verdict.tests_passed) == (
        status,
        error_type,
        *counts,
    )


def test_a_failure_comes_with_the_lines_of_tests_and_code(sandbox):
    verdict = sandbox.run(program(RIGHT, "def add(a, b):\n    return a / 0\n"))
    assert verdict.traceback == (
        "Traceback (most recent call last):\n"
        '  File "<tests>", line 4, in test_add\n    assert add(1, 2) == 3\n'
        '  File "<code>", line 2, in add\n    return a / 0\n'
        "ZeroDivisionError: division by zero"
    )


def test_tests_that_a_stub_passes_are_vacuous(sandbox):
    tests = "def test_a():\n    try: assert add(1, 2) == 3\n    except AssertionError: pass\n"
    assert sandbox.run(program(tests), check_vacuous=True).status == "vacuous"
    assert sandbox.run(program(RIGHT), check_vacuous=True).passed


WRONG = "def add(a, b):\n    return None\n"


@pytest.mark.parametrize(
    "code",
    [
        "import pytest\npytest.raises = None\n",
        "import _pytest.python as p\np.Function.runtest = lambda self: None\n",
        "import _pytest.runner as r\nr.pytest_runtest_call = lambda item: None\n",
        "import pluggy\npluggy.HookCaller.__call__ = lambda self, **k: []\n",
        "import sys, types\nsys.modules['pytest'] = types.ModuleType('pytest')\n",
        "import unittest\nunittest.TestCase.assertEqual = print\n",
        "import builtins\nbuiltins.isinstance = lambda *a: True\n",
        "import _pytest.config as c\nc.default_plugins = (*c.default_plugins, 'evil')\n",
        "import _pytest.python as p\np.Function.from_parent = classmethod(print)\n",
        "import sys, types\nsys.modules['_pytest.pastebin'] = types.ModuleType('evil')\n",
        "import os\nos.environ = dict(os.environ)\n",
        "import sys, types\nsys.modules['unittest'] = types.ModuleType('unittest')\n",
        "import sys\nsys.modules['_pytest.runner'].call_and_report = lambda *a, **k: None\n",
    ],
)
def test_a_program_that_replaces_its_judge_is_tampered(sandbox, code):
    assert sandbox.run(program(RIGHT, code + WRONG)).status == "tampered"


@pytest.mark.parametrize(
    "setting", ["PYTEST_PLUGINS'] = 'evil", "PYTEST_ADDOPTS'] = '-p evil", "PYTEST_ADDOPTS'] = '--collect-only"]
)
def test_the_environment_of_the_program_changes_nothing_in_pytest(sandbox, setting):
    code = "import os, sys, types\nevil = types.ModuleType('evil')\nevil.pytest_pyfunc_call = lambda pyfuncitem: True\n"
    code += f"sys.modules['evil'] = evil\nos.environ['{setting}'\n"
    assert sandbox.run(program(RIGHT, code + WRONG)).status == "fail"
    assert sandbox.run(program(RIGHT, code + ADD)).status == "pass"


LATER = "def add(a, b):\n    import sys\n    TEXT\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("import _pytest.python as p; p.Function.runtest = lambda self: None", "tampered"),
        ("vars(sys.modules['test_program']).clear()", "error"),
        ("sys.exit(0)", "error"),
        ("import pytest; pytest.exit('fine', 0)", "tampered"),
        ("import pytest; pytest.skip('fine')", "no_tests"),
        ("raise KeyboardInterrupt", "tampered"),
        ("import os; os._exit(0)", "early_exit"),
        ("while True: pass", "timeout"),
        ("print('1 passed' * 100_000)", "output_limit"),
        ("return type('C', (), {'__eq__': lambda *a: True})()", "tampered"),
    ],
)
def test_a_program_that_gets_in_the_way_of_its_tests_does_not_pass(sandbox, text, status):
    assert sandbox.run(program(RIGHT, LATER.replace("TEXT", text))).status == status


def test_a_program_that_takes_a_test_away_is_tampered(sandbox):
    code = "import sys\nclass Gone(dict): pass\n" + ADD
    tests = "import sys\n" + RIGHT + "def test_b(): assert False\ndel test_b\n"
    verdict = sandbox.run(program(tests, code))
    assert (verdict.status, verdict.message) == ("tampered", "1 tests were found, 1 run; not found: test_b")


def test_plugins_and_settings_around_the_program_are_not_loaded(sandbox):
    tests = "def test_a(request):\n    names = [n for n, _ in request.config.pluginmanager.list_name_plugin()]\n"
    tests += "    assert not any('xdist' in n or 'hypothesis' in n for n in names), names\n    assert add(1, 2) == 3\n"
    assert sandbox.run(program(tests)).message == ""


def test_without_pytest_there_is_an_error_of_ours_and_no_verdict(sandbox, monkeypatch):
    source = request._source
    monkeypatch.setattr(
        request, "_source", lambda name: source(name).replace("import pytest\n", "import pytest_gone\n")
    )
    with pytest.raises(UserError, match=r"'pytest': pytest_gone is not there .*iterpref_jax\[sandbox\]"):
        sandbox.run(program(RIGHT))
