"""The style "stdin": a script is run on texts, and what it prints is compared where no program is."""

import dataclasses

import pytest

from iterpref_jax.codeflow.sandbox import FAILING, Case, Program, harness, open_sandbox, ruling, stdin_style
from iterpref_jax.codeflow.sandbox.child import Ended
from iterpref_jax.errors import UserError
from tests.support.sandboxes import sandbox_settings

SETTINGS = sandbox_settings(wall_s=4.0, cpu_s=1, memory_mb=256, output_kb=64)
DOUBLE = "n = int(input())\nprint(2 * n)\n"
CASES = (Case(inputs="1\n", expected="2\n"), Case(inputs="5\n", expected="10\n"))


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(SETTINGS) as opened:
        yield opened


def program(code, cases=CASES, setup=""):
    return Program(code=code, setup=setup, style="stdin", cases=cases)


def statuses(verdict):
    return [outcome.status for outcome in verdict.cases]


def test_a_right_script_passes_with_what_it_printed(sandbox):
    verdict = sandbox.run(program(DOUBLE))
    assert (verdict.status, verdict.tests_run, verdict.tests_passed) == ("pass", 2, 2)
    assert [outcome.output for outcome in verdict.cases] == ["2\n", "10\n"]


def test_a_wrong_script_fails_with_what_was_wanted(sandbox):
    verdict = sandbox.run(program("print(2)\n"))
    assert (verdict.status, statuses(verdict)) == ("fail", ["pass", "fail"])
    assert verdict.message == "case 1: lines: wanted '10\\n', got '2\\n'"


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nprint(2 * int(sys.stdin.read()))\nsys.exit(0)\n",
        "print(2 * int(open(0).read()))\nexit()\n",
        "import sys\nfor line in sys.stdin:\n    print(2 * int(line))\nraise SystemExit\n",
        "import os, sys\nprint(2 * int(input()))\nsys.stdout.flush()\nos._exit(0)\n",
        "import os\nos.write(1, b'%d' % (2 * int(os.read(0, 9))))\n",
        "import atexit\natexit.register(lambda: print(2 * int(input())))\n",
        "import threading\nthreading.Thread(target=lambda: print(2 * int(input()))).start()\n",
        "import sys\nsys.setrecursionlimit(10**6)\nprint(2 * int(input()))\nprint('noise', file=sys.stderr)\n",
        "import io, os, sys\nsys.stdout = io.StringIO()\nprint(2 * int(input()))\n"
        "os.write(1, sys.stdout.getvalue().encode())\n",
        "out = open(1, 'w', closefd=False)\nout.write(str(2 * int(input())))\n",
        "if __name__ == '__main__':\n    print(2 * int(input()))\n",
        "import sys\nsys.stdout = type('Out', (), {'write': sys.stdout.write})()\nprint(2 * int(input()))\n",
        "import os\nn = int(input())\nif os.fork():\n    os.wait()\nelse:\n    print(2 * n)\n",
    ],
)
def test_the_ways_in_which_scripts_read_and_print_and_end_are_all_right(sandbox, code):
    assert sandbox.run(program(code)).message == ""


@pytest.mark.parametrize(
    ("code", "status", "error_type"),
    [
        ("print(1 / 0)\n", "error", "ZeroDivisionError"),
        ("print(2)\nimport sys\nsys.exit(3)\n", "error", "SystemExit"),
        ("print(2)\nimport sys\nsys.exit('done')\n", "error", "SystemExit"),
        ("print(2)\nimport os\nos.kill(os.getpid(), 11)\n", "early_exit", "EarlyExit"),
        ("print(2)\nimport os\nos.kill(os.getpid(), 40)\n", "early_exit", "EarlyExit"),
        ("print(2)\nimport os\nos.kill(os.getpid(), 9)\n", "memory_limit", "Killed"),
        ("print(2)\nimport os\nos.close(1)\n", "error", "OSError"),
        ("x = bytearray(1 << 30)\n", "memory_limit", "MemoryError"),
        ("input()\ninput()\n", "error", "EOFError"),
        ("def f(: pass\n", "error", "SyntaxError"),
        ("print('x' * 200_000)\n", "output_limit", "OutputLimit"),
        ("while True: print('x' * 200_000)\n", "output_limit", "OutputLimit"),
        ("while True: pass\n", "timeout", "Timeout"),
        ("import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass\n", "timeout", "Timeout"),
    ],
)
def test_what_ends_a_script_is_told_apart(sandbox, code, status, error_type):
    verdict = sandbox.run(program(code, CASES[:1]))
    assert (verdict.status, verdict.error_type) == (status, error_type)


def test_a_signal_without_a_name_is_told_by_its_number(sandbox):
    verdict = sandbox.run(program("import os\nos.kill(os.getpid(), 40)\n"))
    assert verdict.message == "case 0: the process ended early: signal 40"


def test_an_exception_comes_with_the_line_of_the_code(sandbox):
    verdict = sandbox.run(program("def f(n):\n    return 1 // n\n\nf(int(input()) - 1)\n"))
    assert (verdict.last_frame, statuses(verdict)) == ("<code>:2 in f", ["error", "fail"])


def test_a_case_that_hangs_is_stopped_and_the_next_one_runs(sandbox):
    code = "import time\nn = int(input())\ntime.sleep(60 * (n == 1))\nprint(2 * n)\n"
    cases = tuple(dataclasses.replace(case, wall_s=0.3) for case in CASES)
    verdict = sandbox.run(program(code, cases))
    assert statuses(verdict) == ["timeout", "pass"]
    assert verdict.status == "timeout"


def test_a_closed_stdout_does_not_end_a_script_and_does_not_keep_a_processor_busy(sandbox):
    code = "import os, time\nprint(2 * int(input()), flush=True)\nos.close(1)\ntime.sleep(0.5)\nos._exit(0)\n"
    assert sandbox.run(program(code)).passed


def test_what_a_forgotten_process_prints_later_is_not_waited_for(sandbox):
    code = "import os, time\nprint(2 * int(input()), flush=True)\nif not os.fork():\n    time.sleep(30)\n    print(3)\n"
    verdict = sandbox.run(program(code))
    assert verdict.passed
    assert verdict.seconds < 3


def test_cases_share_nothing_but_the_folder(sandbox):
    code = "import sys\nassert not hasattr(sys, 'seen')\nsys.seen = 1\n" + DOUBLE
    assert sandbox.run(program(code)).passed


def test_output_that_is_not_text_is_written_as_escapes(sandbox):
    verdict = sandbox.run(program("import os\nos.write(1, bytes([255, 10]))\n", (Case(inputs="", expected="\\xff"),)))
    assert verdict.passed


def test_a_text_that_is_no_unicode_arrives(sandbox):
    code = "import sys\nprint(len(sys.stdin.buffer.read()))\n"
    assert sandbox.run(program(code, (Case(inputs="\ud800", expected="3"),))).passed


FORGERY = """
import os
print(0, flush=True)
for pid in ("self", os.getppid()):
    for fd in range(3, 64):
        try:
            with open(f"/proc/{pid}/fd/{fd}", "wb", 0) as file:
                file.write(b"done\\tpass\\n")
        except OSError:
            pass
"""


def test_reports_on_every_open_file_of_its_own_and_of_its_parent_do_not_pass(sandbox):
    verdict = sandbox.run(program(FORGERY))
    assert verdict.status in ("fail", "tampered", "output_limit")


def test_the_report_is_not_open_in_the_script(sandbox):
    # Its three, the one by which its exception is told, and that of the listing itself.
    code = "import os\nprint(os.listdir('/proc/self/fd'))\n"
    assert sandbox.run(program(code, (Case(inputs="", expected="['0', '1', '2', '3', '4']"),))).message == ""


def test_a_script_that_kills_what_watches_it_is_an_early_exit(sandbox):
    assert sandbox.run(program("import os\nos.kill(os.getppid(), 9)\n")).status == "early_exit"


def test_a_script_that_stops_what_watches_it_is_a_timeout(sandbox):
    code = "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)\n"
    cases = tuple(dataclasses.replace(case, wall_s=0.1) for case in CASES)
    assert sandbox.run(program(code, cases)).status == "timeout"


def test_a_script_has_no_stub(sandbox):
    with pytest.raises(UserError, match="check_vacuous"):
        sandbox.run(program(DOUBLE), check_vacuous=True)
    with pytest.raises(UserError, match="has no entry_point"):
        sandbox.run(dataclasses.replace(program(DOUBLE), entry_point="main"))


def test_a_program_whose_processes_leave_no_room_for_the_next_case_is_to_blame(sandbox):
    bomb = "import os\nfor _ in range(10000):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n"
    verdict = sandbox.run(program(bomb, cases=(*CASES, *CASES)))
    assert verdict.status in FAILING


def test_a_user_who_may_start_no_process_more_says_nothing_about_the_program(monkeypatch):
    def refuse():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def ends(status):
        raise SystemExit(status)

    said = [["ready"]]
    monkeypatch.setattr(stdin_style.os, "fork", refuse)
    monkeypatch.setattr(stdin_style.os, "_exit", ends)
    sources = {harness.SETUP: "", harness.CODE: DOUBLE}
    with pytest.raises(SystemExit):
        stdin_style.judge(harness, said.append, lambda: None, sources, ["1000", "4.0", "1\n"])
    events = tuple(map(tuple, said))
    ended = Ended(by="exit", events=events, stderr_tail="", returncode=0, seconds=0.1, cpu_seconds=0.1)
    verdict = ruling.verdict_of(ended, cpu_s=1, tier="landlock", gaps=())
    assert (verdict.status, verdict.cases) == ("sandbox_error", ())
    assert "Resource temporarily unavailable" in verdict.message
