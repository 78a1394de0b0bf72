"""Imports as whole runs: the same bytes however they went, nothing run twice, clear refusals, and on to a dataset."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from iterpref_jax import settings
from iterpref_jax.__main__ import main
from iterpref_jax.codeflow.endpoint import open_journal
from iterpref_jax.codeflow.imports.run import JOURNAL
from iterpref_jax.codeflow.sandbox import Sandbox
from iterpref_jax.data import schema
from iterpref_jax.errors import UserError
from tests.codeflow.imports.importing import run_import, write
from tests.data import tiny

ROOT = pathlib.Path(__file__).parents[3]
UNSAFE = ("--config=configs/base.py", "--config.sandbox.tier=rlimit", "--config.sandbox.allow_unsafe=True")
OUTPUTS = ("trajectories.jsonl", "report.json", "report.md")


def fix(number: int) -> dict[str, str]:
    right = f"def add(a, b):\n    total = a + b\n    return total + {number}\n"
    return {
        "task_id": f"add/{number}",
        "instruction": f"Add two numbers and {number}.",
        "test_code": f"assert add(1, 2) == {number + 3}\n",
        "buggy_code": right.replace("a + b", "a - b"),
        "fixed_code": right,
    }


FIXES = [fix(number) for number in range(40)]


def outputs(folder: pathlib.Path) -> list[bytes]:
    return [(folder / "out" / name).read_bytes() for name in OUTPUTS]


@pytest.fixture
def runs(monkeypatch):
    """Counts the programs that sandboxes are asked to run."""
    counted = []
    original = Sandbox.run

    def run(self, program, **options):
        counted.append(program)
        return original(self, program, **options)

    monkeypatch.setattr(Sandbox, "run", run)
    return counted


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        run_import(folder, "fixes", FIXES[:6], workers=workers)
        found.append(outputs(folder))
    assert found[0] == found[1]


def test_a_second_start_runs_nothing_again(tmp_path, runs):
    run_import(tmp_path, "fixes", FIXES[:3])
    first = outputs(tmp_path)
    assert len(runs) == 3 * (2 + 1)
    run_import(tmp_path, "fixes", FIXES[:3])
    assert len(runs) == 3 * (2 + 1)
    assert outputs(tmp_path) == first


def test_what_lacked_a_package_runs_again(tmp_path, runs):
    lacking = {**FIXES[0], "fixed_code": f"import not_there\n{FIXES[0]['fixed_code']}"}
    _, report = run_import(tmp_path, "fixes", [lacking, FIXES[1]])
    assert report.dropped == {"final_fails": 1}
    before = len(runs)
    run_import(tmp_path, "fixes", [lacking, FIXES[1]])
    assert [program.code for program in runs[before:]] == [lacking["fixed_code"]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_import_goes_on_with_the_same_command(tmp_path, number, capsys, monkeypatch):
    whole = tmp_path / "whole"
    whole.mkdir()
    path = write(tmp_path / "in.jsonl", FIXES)
    arguments = ["import", *UNSAFE, "--form=fixes", f"--in={path}"]
    command = [sys.executable, "-m", "iterpref_jax", *arguments, f"--out={tmp_path / 'out'}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    known = tmp_path / "out" / f"{JOURNAL}-wal"
    # A handful of verdicts: they are some hundred bytes each.
    while process.poll() is None and not (known.exists() and known.stat().st_size > 100_000):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL), said
    assert not (tmp_path / "out" / "trajectories.jsonl").exists()
    monkeypatch.chdir(ROOT)
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().err
    assert "verdicts are there" in said
    counts = next(line for line in said.splitlines() if "known from before" in line).split()
    assert int(counts[0]) + int(counts[2]) == len(FIXES) * 3
    assert int(counts[2]) > 0
    assert main([*arguments, f"--out={whole / 'out'}"]) == 0
    assert outputs(tmp_path) == outputs(whole)


def test_another_import_is_not_mixed_into_a_folder(tmp_path):
    run_import(tmp_path, "fixes", FIXES[:1])
    with pytest.raises(UserError, match=r"out holds another import \(changed: inputs\)"):
        run_import(tmp_path, "fixes", FIXES[1:2])


def test_a_file_that_is_not_ours_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trajectories.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match=r"holds trajectories\.jsonl, but not of an import"):
        run_import(tmp_path, "fixes", FIXES[:1])
    assert (tmp_path / "out" / "trajectories.jsonl").read_text() == "mine\n"


def test_two_imports_into_one_folder_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        open_journal(tmp_path / "out" / JOURNAL),
        pytest.raises(UserError, match="has this journal open"),
    ):
        run_import(tmp_path, "fixes", FIXES[:1])


def test_a_damaged_journal_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="the journal is damaged"):
        run_import(tmp_path, "fixes", FIXES[:1])


def test_verdicts_of_other_limits_are_not_reused(tmp_path, runs):
    run_import(tmp_path, "fixes", FIXES[:1])
    (tmp_path / "out" / "import.json").unlink()
    (tmp_path / "out" / "trajectories.jsonl").unlink()
    before = len(runs)
    run_import(tmp_path, "fixes", FIXES[:1], wall_s=4.0)
    assert len(runs) == 2 * before


def test_a_failure_of_the_sandbox_is_not_stored(tmp_path, monkeypatch):
    original = Sandbox.run

    def failing(self, program, **options):
        verdict = original(self, program, **options)
        return dataclasses.replace(verdict, status="sandbox_error")

    monkeypatch.setattr(Sandbox, "run", failing)
    _, report = run_import(tmp_path, "fixes", FIXES[:1])
    assert report.dropped == {"unjudged": 1}
    with open_journal(tmp_path / "out" / JOURNAL) as journal:
        assert journal.counts() == {}
    monkeypatch.setattr(Sandbox, "run", original)
    found, _ = run_import(tmp_path, "fixes", FIXES[:1])
    assert len(found) == 1


def test_setup_runs_before_every_program(tmp_path):
    row = {**fix(0), "test_code": "assert add(1, 2) == CONSTANT\n"}
    path = write(tmp_path / "setup.py", "CONSTANT = 3\n")
    [trajectory], _ = run_import(tmp_path, "fixes", [row], setup=path)
    assert trajectory.setup_code == "CONSTANT = 3\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--form=fix"], "'fix' is no form; did you mean 'fixes'?"),
        (["--form=fixes", "--column=code"], "--column=code: write --column=FIELD=NAME"),
        (["--form=trajectories", "--tests=T"], "--tests=T: the form trajectories brings its own tests"),
        (["--form=git", "--column=a=b"], "--column: the form git has no columns"),
        (["--form=fixes", f"--in={ROOT}"], "this is a folder; name one file in it"),
        (["--form=auto", f"--in={ROOT / 'docs'}"], "a folder, but no git repository"),
        (["--form=fixes", "--setup=NOWHERE"], "--setup=NOWHERE: wanted a file of Python"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = write(tmp_path / "in.jsonl", FIXES[:1])
    assert main(["import", *UNSAFE, f"--in={path}", f"--out={tmp_path / 'out'}", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["max_solutions", "max_cases"])
def test_limits_below_one_are_refused(name):
    config = settings.load_config(str(ROOT / "configs" / "base.py"), [f"imports.{name}=0"])
    with pytest.raises(UserError, match=f"imports.{name}: wanted at least 1, got 0"):
        settings.read_section(config, "imports")


def test_an_import_goes_on_to_a_dataset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "tokenizer").mkdir()
    tiny.byte_level().save_pretrained(tmp_path / "tokenizer")
    path = write(tmp_path / "in.jsonl", FIXES[:6])
    assert main(["import", *UNSAFE, "--form=auto", f"--in={path}", f"--out={tmp_path / 'out'}"]) == 0
    assert f"{path}: form fixes, by the columns task_id, instruction" in capsys.readouterr().err
    build = ["build", "--config=configs/base.py", f"--config.build.text.tokenizer={tmp_path / 'tokenizer'}"]
    build += ["--config.build.text.template=raw", "--config.build.workers=0", f"--out={tmp_path / 'dataset'}"]
    assert main([*build, f"--input={tmp_path / 'out' / 'trajectories.jsonl'}"]) == 0
    splits = schema.open_dataset(tmp_path / "dataset").metadata["splits"]
    assert sum(about["pairs"] for about in splits.values()) == 6
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["trajectories"], report["error_types"]) == (6, {"AssertionError": 6})


def test_help_names_every_form(capsys):
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    said = capsys.readouterr().out
    assert all(f"{name} (" in said for name in ("fixes", "submissions", "traces", "problems", "git", "trajectories"))
