"""Another Python than ours: what is refused, and that it judges, isolates and is told apart as ours does and is."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from iterpref_jax.codeflow.sandbox import Case, Program, harness, interpreter, open_sandbox, tiers
from iterpref_jax.errors import UserError
from tests.codeflow import isolation_test
from tests.support import interpreters
from tests.support.sandboxes import sandbox_settings

SETTINGS = sandbox_settings(wall_s=10.0, cpu_s=5, workers=1)
ADD = "def add(a, b):\n    return a + b\n"
# Programs that mean harm, each in a way of its own; isolation_test runs all with our interpreter.
SOME_HOSTILE = [name for name in isolation_test.CASES if isolation_test.CASES[name]["kind"] == "solution"][::6]


def script(tests, **more):
    return Program(code=ADD, tests=tests, setup="", style="script", **more)


def opened(tier, **changes):
    """The sandbox of a tier with another interpreter; skips the test where there is none, or no such tier."""
    named = interpreters.other()
    python = interpreter.find(named)
    is_warm = changes.get("warm", False)
    if why := tiers.why_not(tier, python) or (is_warm and tiers.why_cold(tier, python)):
        pytest.skip(f"{tier} does not hold with {named}: {why}")
    return open_sandbox(dataclasses.replace(SETTINGS, tier=tier, python=named, **changes))


@pytest.fixture(
    scope="module",
    params=isolation_test.MODES,
    ids=[f"{tier}-{'warm' if warm else 'cold'}" for tier, warm in isolation_test.MODES],
)
def strong(request):
    tier, warm = request.param
    with opened(tier, warm=warm) as sandbox:
        yield sandbox


def version_of(python):
    return ".".join(map(str, interpreter.find(python).version))


def test_programs_run_in_the_interpreter_that_is_named_and_its_tier_holds(strong):
    """A tier whose canaries fail is not opened."""
    wanted = version_of(interpreters.other())
    tests = f"import platform, sys\nassert add(2, 3) == 5\nassert platform.python_version() == {wanted!r}\n"
    verdict = strong.run(script(tests + "assert sys.path[0] not in ('/', '', '.')\n"))
    assert verdict.passed, verdict


@pytest.mark.parametrize("style", ["unittest", "io", "stdin"])
def test_every_style_runs_there(strong, style):
    right, wrong = (isolation_test.styled(f"def add(a, b):\n    return a {sign} b\n", style) for sign in "+-")
    assert strong.run(right, check_flaky=True).passed
    assert strong.run(wrong).status == "fail"


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME_HOSTILE)
def test_a_hostile_program_changes_nothing_there(strong, name, tmp_path, monkeypatch):
    isolation_test.test_a_hostile_program_gets_an_acceptable_verdict_and_changes_nothing(
        strong, name, tmp_path, monkeypatch
    )


def test_lines_are_counted_there():
    with open_sandbox(dataclasses.replace(SETTINGS, python=interpreters.other())) as sandbox:
        verdict = sandbox.run(script("assert add(1, 2) == 3\n", coverage=True))
    assert (verdict.lines_covered, verdict.lines_total) == (2, 2)


def test_packages_are_those_of_the_environment_that_is_named_not_ours(tmp_path):
    python = interpreters.environment(tmp_path / "environment")
    found = interpreter.find(str(python))
    Path(found.packages[0], "only_there.py").write_text("answer = 42\n")
    with open_sandbox(dataclasses.replace(SETTINGS, python=str(python))) as sandbox:
        assert sandbox.run(script("import only_there\nassert only_there.answer == 42\n")).passed
        assert sandbox.run(script("import rich\nassert rich\n")).error_type == "ModuleNotFoundError"


def test_an_environment_in_tmp_is_seen_by_cold_programs_and_the_reason_is_said(tmp_path, capsys):
    python = interpreters.environment(tmp_path / "environment")
    if why := tiers.why_not("bwrap", interpreter.find(str(python))):
        pytest.skip(why)
    Path(interpreter.find(str(python)).packages[0], "only_there.py").write_text("answer = 42\n")
    with open_sandbox(dataclasses.replace(SETTINGS, tier="bwrap", warm=True, python=str(python))) as sandbox:
        assert sandbox.run(script("import only_there\nassert only_there.answer == 42\n")).passed
    assert "lies in a folder that every run has anew" in capsys.readouterr().err


def test_modules_are_preloaded_by_the_interpreter_that_is_named():
    with opened("bwrap", warm=True, preload=("decimal",)) as sandbox:
        assert sandbox.run(script("import sys\nassert 'decimal' in sys.modules\n")).passed
    with pytest.raises(UserError, match=rf"sandbox\.preload: .*{version_of(interpreters.other())}.*no_such_module"):
        opened("bwrap", warm=True, preload=("no_such_module",)).__enter__()


def test_a_style_whose_package_is_not_there_names_the_interpreter(tmp_path):
    python = interpreters.environment(tmp_path / "environment")
    program = Program(code=ADD, tests="def test(): assert add(1, 2) == 3\n", setup="", style="pytest")
    with (
        open_sandbox(dataclasses.replace(SETTINGS, python=str(python))) as sandbox,
        pytest.raises(UserError, match=rf"{python} -m pip install pytest"),
    ):
        sandbox.run(program)


def test_what_we_compiled_is_not_run_by_another_version():
    ours = interpreter.own()
    assert interpreter.find(interpreters.other()).file_of(harness) == harness.__file__
    assert interpreter.find(sys.executable).file_of(harness) == ours.file_of(harness)


def test_our_own_interpreter_says_the_same_when_it_is_asked():
    assert interpreter.find(sys.executable) == interpreter.own() == interpreter.find("")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing/here", "'nothing/here' is not a program; check the path"),
        ("/bin/true", "wanted CPython 3.10 or newer, got /bin/true: which ran, but is no Python"),
        ("/bin/false", "wanted CPython 3.10 or newer, got /bin/false: which ended with code 1: "),
    ],
)
def test_what_is_no_python_is_refused_by_its_path(name, message):
    with pytest.raises(UserError, match=message):
        open_sandbox(dataclasses.replace(SETTINGS, python=name)).__enter__()


def test_a_program_that_prints_a_number_is_no_python(tmp_path):
    program = tmp_path / "seven"
    program.write_text("#!/bin/sh\necho 7\n")
    program.chmod(0o755)
    with pytest.raises(UserError, match="which ran, but is no Python"):
        interpreter.find(str(program))


def test_a_folder_of_an_environment_is_refused_with_its_interpreter(tmp_path):
    python = interpreters.environment(tmp_path / "environment")
    with pytest.raises(UserError, match=rf"did you mean {python}\?"):
        interpreter.find(str(python.parents[1]))


def test_a_version_that_is_too_old_is_refused():
    with pytest.raises(UserError, match=r"wanted CPython 3\.10 or newer, got .*, which is cpython 3\.\d"):
        interpreter.find(interpreters.old())


def test_an_interpreter_whose_folder_holds_the_home_is_refused(monkeypatch):
    base = interpreter.own().base
    monkeypatch.setenv("HOME", os.path.join(base, "me"))
    with pytest.raises(UserError, match=f"programs read the folder {base} of .*lies in it"):
        interpreter.find(sys.executable)


def test_verdicts_of_another_interpreter_are_told_apart():
    named = dataclasses.replace(SETTINGS, python="/opt/other/bin/python").that_matter()
    assert named["python"] == "/opt/other/bin/python"
    assert named != SETTINGS.that_matter()


def test_cases_are_typed_alike_by_every_version():
    program = Program(
        code="def f(x):\n    return {'a': [x, 1.5, None, True], 'b': (x, {x}), 'c': b'\\x00', 'd': 10**30}\n",
        setup="",
        tests="",
        style="io",
        entry_point="f",
        cases=(Case(inputs=(2,), expected={"a": [2, 1.5, None, True], "b": (2, {2}), "c": b"\x00", "d": 10**30}),),
    )
    for python in ("", interpreters.other()):
        with open_sandbox(dataclasses.replace(SETTINGS, python=python)) as sandbox:
            assert sandbox.run(program).passed
