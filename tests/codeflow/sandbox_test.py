"""The sandbox's tier `rlimit`: one property a test, each by a small program of its own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import itertools
import os
import py_compile
import subprocess
import sys
import time

import pytest

from iterpref_jax.codeflow import records
from iterpref_jax.codeflow.sandbox import FAILING, STATUSES, Program, interpreter, open_sandbox
from iterpref_jax.errors import UserError
from tests.support.sandboxes import ADD, SHORT, script


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(SHORT) as opened:
        yield opened


def body(text: str) -> str:
    return f"import os, sys, time\ndef add(a, b):\n    {text}\n    return a + b\n"


def test_a_right_program_passes_with_its_checks_counted(sandbox):
    verdict = sandbox.run(script(ADD, "assert add(2, 3) == 5\nfor n in range(9):\n    assert add(n, 1) == n + 1\n"))
    assert (verdict.status, verdict.tests_run, verdict.tests_passed) == ("pass", 2, 2)
    assert verdict.passed
    assert 0 < verdict.seconds < SHORT.wall_s
    assert verdict.memory_mb > 1


def test_a_wrong_result_is_a_fail_with_the_check_that_failed(sandbox):
    tests = "assert add(0, 0) == 0\n\nassert add(2, 3) == 5, 'two and three'\n"
    verdict = sandbox.run(script("def add(a, b):\n    return a - b\n", tests))
    assert (verdict.status, verdict.error_type, verdict.message) == ("fail", "AssertionError", "two and three")
    assert (verdict.tests_run, verdict.tests_passed) == (2, 1)
    assert verdict.last_frame == "<tests>:3 in <module>"


def test_an_exception_is_an_error_with_the_line_of_the_code(sandbox):
    verdict = sandbox.run(script("def add(a, b):\n    c = {}\n    return c['x']\n", setup="import math\n\n"))
    assert (verdict.status, verdict.error_type, verdict.last_frame) == ("error", "KeyError", "<code>:3 in add")
    assert verdict.traceback == (
        "Traceback (most recent call last):\n"
        '  File "<tests>", line 1, in <module>\n    assert add(2, 3) == 5\n'
        "  File \"<code>\", line 3, in add\n    return c['x']\n"
        "KeyError: 'x'"
    )


@pytest.mark.parametrize(
    ("code", "error_type"),
    [
        ("def add(a, b)\n    return a + b\n", "SyntaxError"),
        ("def add(a, b):\nreturn a\n", "IndentationError"),
        ("x = '\ud800'\n", "UnicodeEncodeError"),
    ],
)
def test_code_that_does_not_compile_is_an_error(sandbox, code, error_type):
    verdict = sandbox.run(script(code))
    assert (verdict.status, verdict.error_type) == ("error", error_type)


def test_code_with_a_null_byte_is_an_error(sandbox):
    assert sandbox.run(script("x = 1\0\n")).status == "error"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("while True: pass", "timeout"),
        ("time.sleep(60)", "timeout"),
        ("x = bytearray(1 << 30)", "memory_limit"),
        ("while True: os.write(1, b'x' * 65536)", "output_limit"),
        ("while True: os.write(2, b'x' * 65536)", "output_limit"),
        ("f = open('big', 'wb'); [f.write(bytes(1 << 20)) for _ in range(100)]", "disk_limit"),
        ("os._exit(0)", "early_exit"),
        ("os.kill(os.getpid(), 11)", "early_exit"),
        ("os.kill(os.getpid(), 40)", "early_exit"),
        ("sys.exit(0)", "error"),
        ("input()", "error"),
        ("raise type('E', (Exception,), {'__str__': lambda e: 1 / 0})", "error"),
        ("raise ValueError('Q' * (20 << 20))", "error"),
    ],
)
def test_what_ends_a_program_is_told_apart(sandbox, text, status):
    verdict = sandbox.run(script(body(text)))
    assert verdict.status == status
    assert len(verdict.traceback) <= 4096
    assert not verdict.passed


def test_memory_that_is_held_until_the_end_can_still_be_reported(sandbox):
    code = "keep = []\ndef add(a, b):\n    while True:\n        keep.append(bytes(1 << 20))\n"
    assert sandbox.run(script(code)).status == "memory_limit"


def test_much_output_within_the_limit_passes(sandbox):
    assert sandbox.run(script(body("print('y' * 100_000); print('z' * 100_000, file=sys.stderr)"))).passed


def test_output_that_is_not_text_passes(sandbox):
    assert sandbox.run(script(body("os.write(1, bytes([255, 254, 0])); os.write(2, bytes([0xC3, 0x28]))"))).passed


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "# nothing\n",
        "import sys\nsys.stderr.write('Ran 3 tests OK')\n",
        "add(1, 2)\n",
        "for _ in []:\n    assert 0\n",
    ],
)
def test_tests_that_check_nothing_are_no_tests(sandbox, tests):
    assert sandbox.run(script(ADD, tests)).status == "no_tests"


def test_checks_in_the_setup_count_when_the_tests_reach_them(sandbox):
    setup = "def check(f):\n    assert f(1, 2) == 3\n"
    assert sandbox.run(script(ADD, "check(add)\n", setup)).tests_run == 1
    assert sandbox.run(script(ADD, "add(1, 2)\n", setup)).status == "no_tests"


def test_a_check_by_a_call_named_assert_counts(sandbox):
    tests = "import unittest\nunittest.TestCase().assertEqual(add(1, 2), 3)\n"
    assert sandbox.run(script(ADD, tests)).tests_run == 1


@pytest.mark.parametrize("style", ["script", "unittest"])
def test_tests_that_a_stub_passes_are_vacuous_on_request(sandbox, style):
    tests = "try:\n    assert add(2, 3) == 5\nexcept Exception:\n    assert True\n"
    if style == "unittest":
        tests = (
            "import unittest\nfrom solution import add\nclass T(unittest.TestCase):\n    def test_a(self):\n"
            "        try: self.assertEqual(add(2, 3), 5)\n        except Exception: pass\n"
        )
    program = Program(code=ADD, tests=tests, setup="", style=style)
    assert sandbox.run(program).status == "pass"
    assert sandbox.run(program, check_vacuous=True).status == "vacuous"
    assert sandbox.run(script(ADD), check_vacuous=True).status == "pass"


@pytest.mark.parametrize(
    "code",
    [
        "import builtins\nbuiltins.isinstance = lambda *a: True\ndef add(a, b): return None\n",
        "import builtins\ndef add(a, b):\n    builtins.len = None\n    return a + b\n",
        "import builtins\ndef add(a, b):\n    del builtins.sum\n    return a + b\n",
    ],
)
def test_replaced_builtins_are_tampered(sandbox, code):
    assert sandbox.run(script(code)).status == "tampered"


def test_a_report_without_the_token_is_tampered(sandbox):
    forged = body(
        "for fd in range(3, 64):\n        try: os.write(fd, b'done\\tpass\\n')\n        except OSError: pass"
    ).replace("return a + b", "time.sleep(60)")
    assert sandbox.run(script(forged)).status == "tampered"


def test_a_closed_report_pipe_is_an_early_exit(sandbox):
    code = body("os.closerange(3, 64); time.sleep(60)")
    assert sandbox.run(script(code)).status == "early_exit"


def test_a_forked_copy_cannot_report(sandbox):
    code = "import os, time\nif os.fork():\n    time.sleep(60)\n" + ADD
    assert sandbox.run(script(code)).status == "timeout"


def test_the_token_is_not_in_the_programs_namespace(sandbox):
    code = "import sys\nassert sys.modules['__main__'].__dict__ is globals()\n" + ADD
    names = "assert not {'token', 'report', 'main', 'harness'} & set(globals())\n"
    assert sandbox.run(script(code, names + "assert add(1, 2) == 3\n")).passed


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_descendant_that_left_the_session_is_killed(tmp_path):
    told, part = str(tmp_path / "pid"), str(tmp_path / "part")
    daemon = (
        "if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        f"            with open({part!r}, 'w') as file: file.write(str(os.getpid()))\n"
        f"            os.rename({part!r}, {told!r})\n            time.sleep(60)\n        os._exit(0)\n"
        f"    while not os.path.exists({told!r}): time.sleep(0.01)"
    )
    with open_sandbox(SHORT) as sandbox:
        assert sandbox.run(script(body(daemon))).passed
        pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 2
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(pid)


def test_the_environment_is_the_sandboxs_own(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    tests = "import os\nassert 'SECRET_OF_THE_PARENT' not in os.environ\nassert os.environ['HOME'] == os.getcwd()\n"
    tests += "assert os.environ['OMP_NUM_THREADS'] == '1'\n"
    assert sandbox.run(script(ADD, tests)).message == ""
    assert sandbox.run(script(ADD, tests)).passed


def test_the_hash_seed_decides_the_order_of_sets(sandbox):
    code = "order = list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})\n"
    message = "assert False, ''.join(order)\n"
    said = [sandbox.run(script(code, message), hash_seed=seed).message for seed in (0, 0, 1, 2, 3)]
    assert said[0] == said[1]
    assert len(set(said)) > 1


def test_the_work_folder_is_removed(sandbox):
    tests = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nassert False, os.getcwd()\n"
    assert not os.path.exists(sandbox.run(script(ADD, tests)).message)


def test_installed_packages_can_be_imported(sandbox):
    assert sandbox.run(script(ADD, "import etils\nassert add(1, 2) == 3\n")).passed


def test_a_script_runs_as_main(sandbox):
    code = "import dataclasses, pickle\n@dataclasses.dataclass\nclass P:\n    x: int\n" + ADD
    tests = "assert __name__ == '__main__'\nassert pickle.loads(pickle.dumps(P(3))) == P(3)\n"
    assert sandbox.run(script(code, tests)).passed


def test_run_all_keeps_the_order_and_tells_each_end(sandbox):
    slow = script("import time\ntime.sleep(0.3)\n" + ADD)
    ended = []
    verdicts = sandbox.run_all(
        [slow, script("1 / 0"), script(ADD)], lambda index, verdict: ended.append((index, verdict.status))
    )
    assert [verdict.status for verdict in verdicts] == ["pass", "error", "pass"]
    assert sorted(ended) == [(0, "pass"), (1, "error"), (2, "pass")]
    assert ended[-1][0] == 0


UNITTEST = "import unittest\nfrom solution import add\nclass T(unittest.TestCase):\n"


@pytest.mark.parametrize(
    ("code", "tests", "status", "counts"),
    [
        (ADD, "    def test_a(self): self.assertEqual(add(1, 2), 3)\n", "pass", (1, 1)),
        (ADD, "    def test_a(self): self.assertEqual(add(1, 2), 4)\n    def test_b(self): pass\n", "fail", (2, 1)),
        (ADD, "    def test_a(self): add(1, 2, 3)\n", "error", (1, 0)),
        (ADD, "    @unittest.skip('no')\n    def test_a(self): pass\n", "no_tests", (0, 0)),
        (ADD, "    pass\n", "no_tests", (0, 0)),
        ("import unittest\nunittest.TestCase.assertEqual = print\n" + ADD, "    pass\n", "tampered", (0, 0)),
    ],
)
def test_unittest_files_are_judged_by_their_tests(sandbox, code, tests, status, counts):
    verdict = sandbox.run(Program(code=code, tests=UNITTEST + tests, setup="", style="unittest"))
    assert (verdict.status, verdict.tests_run, verdict.tests_passed) == (status, *counts)


@pytest.mark.parametrize(("path", "message"), [("/nonexistent/python", "No such file"), ("/bin/false", "exit code 1")])
def test_an_interpreter_that_does_not_start_is_our_error(path, message, monkeypatch):
    broken = dataclasses.replace(interpreter.own(), executable=path)
    monkeypatch.setattr(interpreter, "own", lambda: broken)
    with open_sandbox(SHORT) as sandbox:
        verdict = sandbox.run(script(ADD))
    assert verdict.status == "sandbox_error"
    assert message in verdict.message


def test_every_verdict_says_that_the_tier_is_unsafe(sandbox):
    verdict = sandbox.run(script(ADD))
    assert verdict.tier == "rlimit"
    assert "unsafe" in verdict.gaps


def test_our_own_failures_and_forgeries_are_not_failing_programs():
    assert set(STATUSES) - FAILING == {"pass", "no_tests", "vacuous", "flaky", "tampered", "sandbox_error"}


def test_the_banner_is_printed_once(capsys):
    with open_sandbox(SHORT) as sandbox:
        sandbox.run_all([script(ADD)] * 2)
    assert capsys.readouterr().err.count("UNSAFE") == 1


def test_who_leaves_does_not_wait_for_programs_that_run_for_long():
    began = time.monotonic()
    roomy = dataclasses.replace(SHORT, wall_s=60.0)
    with concurrent.futures.ThreadPoolExecutor(1) as other, open_sandbox(roomy) as sandbox:
        running = other.submit(sandbox.run, script("import time\ntime.sleep(60)\n"), check_flaky=True)
        time.sleep(0.3)
        sandbox.stop()
        verdict = running.result()
    assert (verdict.status, verdict.message) == ("sandbox_error", "stopped before its end")
    assert time.monotonic() - began < 10


def test_who_leaves_before_the_stub_has_run_gets_no_pass():
    def tier(program, *, hash_seed, stop):
        # What `stop` does: the first run is over, the stub's is not.
        return broken if stop.is_set() else passed

    with open_sandbox(SHORT) as sandbox:
        passed = sandbox.run(script(ADD))
        broken = dataclasses.replace(passed, status="sandbox_error")
        sandbox._tier = lambda program, **how: (tier(program, **how), sandbox.stop())[0]
        assert sandbox.run(script(ADD, "add(1, 2)\nassert True\n"), check_vacuous=True) == broken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allow_unsafe": False}, "sandbox.allow_unsafe=True"),
        ({"preload": ("numpy",)}, "sandbox.preload: numpy is imported into warm interpreters only"),
        ({"tier": "rlimits"}, "did you mean 'rlimit'"),
        ({"wall_s": 0.0}, "sandbox.wall_s"),
        ({"memory_mb": 8}, "sandbox.memory_mb"),
        ({"workers": 0}, "sandbox.workers"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message), open_sandbox(dataclasses.replace(SHORT, **changes)):
        pass


def test_an_unknown_style_is_refused_by_name(sandbox):
    with pytest.raises(UserError, match="'doctest'"):
        sandbox.run(dataclasses.replace(script(ADD), style="doctest"))


def test_the_harness_imports_nothing_but_the_standard_library():
    from iterpref_jax.codeflow.sandbox import harness

    command = [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({harness.__file__!r}, run_name='x')"]
    assert subprocess.run(command, check=False).returncode == 0


def test_no_fork_of_this_process_is_made(sandbox):
    # JAX runs threads, and a fork of a process with threads can hang; JAX itself warns by the same hook.
    forks = []
    os.register_at_fork(before=lambda: forks.append(1))
    assert sandbox.run(script(ADD)).passed
    assert forks == []


def recorded_versions(count: int) -> list[tuple[Program, bool]]:
    folder = os.environ.get("ITERPREF_DATA", "")
    path = os.path.join(folder, "trajectories", "dev_sample.jsonl.gz")
    if not folder or not os.path.exists(path):
        pytest.skip("set ITERPREF_DATA to the folder that holds trajectories/dev_sample.jsonl.gz")
    programs = []
    for trajectory in itertools.islice(records.read_trajectories(path), 0, None, 12):
        for version in (trajectory.versions[0], trajectory.versions[-1]):
            programs.append((script(version.code, trajectory.test_code, trajectory.setup_code), version.passed))
    return programs[:count]


def test_recorded_histories_get_their_recorded_verdicts():
    programs, passed = zip(*recorded_versions(40), strict=True)
    roomy = dataclasses.replace(SHORT, wall_s=10.0, cpu_s=5, memory_mb=1024, output_kb=1024)
    with open_sandbox(roomy) as sandbox:
        assert tuple(verdict.passed for verdict in sandbox.run_all(programs)) == passed


def test_a_compiled_file_of_an_older_source_is_not_run(tmp_path):
    source = tmp_path / "part.py"
    source.write_text("x = 1\n")
    compiled = py_compile.compile(str(source))
    spec = importlib.util.spec_from_file_location("part", source)
    module = importlib.util.module_from_spec(spec)
    assert interpreter.own().file_of(module) == compiled
    source.write_text("x = 1234\n")
    assert interpreter.own().file_of(module) == str(source)
