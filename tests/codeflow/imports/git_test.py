"""Repositories: which commits become histories, and that nothing of a repository is run outside the sandbox."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from iterpref_jax.codeflow.imports import forms, git_repository
from iterpref_jax.errors import UserError
from tests.codeflow.imports.importing import codes, run_import

RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"
TESTS = "from shop.adding import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
ME = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
DATE = {"GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000"}


def git(folder: pathlib.Path, *words: str) -> str:
    environment = {**os.environ, **ME, **DATE, "GIT_CONFIG_GLOBAL": os.devnull}
    ended = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def commit(folder: pathlib.Path, message: str, **files: str | None) -> str:
    """Writes files (`a__b` is `a/b.py`; None removes one) and commits them; returns the hash."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink() if text is None else path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


def test_a_commit_that_turns_a_failing_test_is_a_history(repository, tmp_path):
    commit(repository, "start", shop__adding=WRONG)
    name = commit(repository, "Mend add", shop__adding=RIGHT, tests__test_adding=TESTS)
    commit(repository, "tidy", shop__adding=RIGHT + "# tidy\n")
    [trajectory], report = run_import(tmp_path, "git", repository)
    assert codes(trajectory) == [WRONG, RIGHT]
    assert trajectory.task_id == f"shop/shop/adding.py@{name[:12]}"
    assert trajectory.task == "shop/shop/adding.py"
    assert trajectory.meta == {
        "commit": name,
        "date": "2023-11-14T22:13:20+00:00",
        "message": "Mend add",
        "style": "unittest",
        "task": "shop/shop/adding.py",
        "test_file": "tests/test_adding.py",
        "tier": "rlimit",
    }
    assert report.dropped == {"no_failing_version": 1}


@pytest.mark.parametrize(
    "tests",
    [
        "import shop.adding\n\ndef test_add():\n    assert shop.adding.add(1, 2) == 3\n",
        "from shop import adding as it\n\ndef test_add():\n    assert it.add(1, 2) == 3\n",
        "from ..shop.adding import *\n\ndef test_add():\n    assert add(1, 2) == 3\n",
        "import unittest\nfrom adding import add\n\nclass T(unittest.TestCase):\n"
        "    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n",
    ],
    ids=["module", "from package", "relative", "unittest"],
)
def test_tests_may_import_the_file_under_any_of_its_names(repository, tmp_path, tests):
    folder = "pack__tests__test_adding" if ".." in tests else "test_adding"
    source = "pack__shop__adding" if ".." in tests else "shop__adding"
    commit(repository, "start", **{source: WRONG, folder: tests})
    commit(repository, "mend", **{source: RIGHT})
    [trajectory], _ = run_import(tmp_path, "git", repository)
    assert codes(trajectory) == [WRONG, RIGHT]


def test_a_commit_of_a_time_that_no_calendar_has_comes_without_its_date(repository, tmp_path, monkeypatch):
    commit(repository, "start", shop__adding=WRONG)
    monkeypatch.setitem(DATE, "GIT_COMMITTER_DATE", "@99999999999999 +0000")
    name = commit(repository, "mend", shop__adding=RIGHT, tests__test_adding=TESTS)
    [trajectory], _ = run_import(tmp_path, "git", repository)
    assert trajectory.meta["commit"] == name
    assert "date" not in trajectory.meta


def test_tests_that_need_pytest_are_run_by_it(repository, tmp_path):
    tests = (
        "import pytest\nfrom shop.adding import add\n\n\n@pytest.mark.parametrize(('a', 'b'), [(1, 2), (0, 3)])\n"
        "def test_add(a, b):\n    assert add(a, b) == 3\n"
    )
    commit(repository, "start", shop__adding=WRONG, tests__test_adding=tests)
    commit(repository, "mend", shop__adding=RIGHT)
    [trajectory], _ = run_import(tmp_path, "git", repository)
    assert trajectory.meta["style"] == "pytest"


def test_doctests_judge_where_there_is_no_test_file(repository, tmp_path):
    said = 'def add(a, b):\n    """Adds two numbers.\n\n    >>> add(1, 2)\n    3\n    """\n    return a {} b\n'
    commit(repository, "start", adding=said.format("-"))
    commit(repository, "mend", adding=said.format("+"))
    [trajectory], _ = run_import(tmp_path, "git", repository)
    assert trajectory.meta["test_file"] == "doctest"
    assert trajectory.instruction == "Write the Python module `adding.py`.\n- `add(a, b)`: Adds two numbers.\n"
    assert trajectory.versions[0].error_type == "AssertionError"


def test_a_renamed_file_is_compared_with_what_it_was(repository, tmp_path):
    body = "".join(f"def f{n}():\n    return {n}\n\n\n" for n in range(9))
    commit(repository, "start", old=body + WRONG)
    commit(repository, "move", old=None, shop__adding=body + RIGHT, tests__test_adding=TESTS)
    [trajectory], _ = run_import(tmp_path, "git", repository)
    assert codes(trajectory) == [body + WRONG, body + RIGHT]
    assert trajectory.meta["renamed_from"] == "old.py"


def test_merges_are_left_out_and_commits_on_branches_are_not(repository, tmp_path):
    commit(repository, "start", shop__adding=WRONG, tests__test_adding=TESTS)
    git(repository, "checkout", "-q", "-b", "side")
    mended = commit(repository, "mend", shop__adding=RIGHT)
    git(repository, "checkout", "-q", "main")
    commit(repository, "other", other="x = 1\n")
    git(repository, "merge", "-q", "--no-edit", "side")
    found, _ = run_import(tmp_path, "git", repository)
    assert [trajectory.meta["commit"] for trajectory in found] == [mended]


@pytest.mark.parametrize(
    ("code", "tests", "reason"),
    [
        ("from . import other\n\n" + RIGHT, TESTS, "not_self_contained"),
        ("import nowhere\n\n" + RIGHT, TESTS, "final_fails"),
    ],
)
def test_files_that_cannot_be_judged_alone_are_dropped(repository, tmp_path, code, tests, reason):
    commit(repository, "start", shop__adding=WRONG, tests__test_adding=tests)
    commit(repository, "mend", shop__adding=code)
    found, report = run_import(tmp_path, "git", repository)
    assert found == []
    assert report.dropped == {reason: 1}


def test_tests_that_do_not_import_the_file_are_not_its_tests(repository, tmp_path):
    tests = "def test_nothing():\n    assert 1 + 1 == 2\n"
    commit(repository, "start", shop__adding=WRONG, tests__test_adding=tests)
    commit(repository, "mend", shop__adding=RIGHT)
    found, report = run_import(tmp_path, "git", repository)
    assert (found, report.candidates) == ([], 0)


def test_nothing_that_a_repository_configures_is_run(repository, tmp_path):
    commit(repository, "start", shop__adding=WRONG, tests__test_adding=TESTS)
    (repository / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
    commit(repository, "mend", shop__adding=RIGHT)
    marker = tmp_path / "ran"
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    evil.chmod(0o755)
    for key in ("core.fsmonitor", "diff.evil.textconv", "diff.evil.command", "filter.evil.smudge", "core.pager"):
        git(repository, "config", key, str(evil))
    git(repository, "config", "diff.external", str(evil))
    for hook in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        (repository / ".git" / "hooks" / hook).parent.mkdir(exist_ok=True)
        (repository / ".git" / "hooks" / hook).write_text(evil.read_text())
        (repository / ".git" / "hooks" / hook).chmod(0o755)
    before = sorted(path.as_posix() for path in repository.rglob("*"))
    found, _ = run_import(tmp_path, "git", repository)
    assert len(found) == 1
    assert not marker.exists()
    assert sorted(path.as_posix() for path in repository.rglob("*")) == before


def test_a_bare_repository_is_known_and_read(repository, tmp_path):
    commit(repository, "start", shop__adding=WRONG, tests__test_adding=TESTS)
    commit(repository, "mend", shop__adding=RIGHT)
    git(tmp_path, "clone", "-q", "--bare", str(repository), "bare.git")
    assert forms.guess_form(str(tmp_path / "bare.git"))[0].name == "git"
    found, _ = run_import(tmp_path, "git", tmp_path / "bare.git")
    assert [trajectory.task for trajectory in found] == ["bare/shop/adding.py"]


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"no git repository; name the folder that holds \.git"),
        git_repository.open_repository(str(tmp_path)),
    ):
        pass


def test_an_empty_repository_is_an_error_of_the_user(repository, tmp_path):
    with pytest.raises(UserError, match="is the repository whole, with a commit"):
        run_import(tmp_path, "git", repository)
