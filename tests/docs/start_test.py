"""The page that starts: its files and commands, one after the other, as somebody who reads it would run them."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.docs.pages import DOCS, ROOT, blocks
from tests.support import runs

SCRIPTS = {"iterpref": "-m iterpref_jax", "python": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like a checkout, in which the page's blocks have been followed."""
    folder = tmp_path_factory.mktemp("start")
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    programs = tmp_path_factory.mktemp("bin")
    for name, words in SCRIPTS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (programs / name).chmod(0o755)
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = runs.environment(tmp_path_factory.mktemp("compiled")) | paths
    for block in blocks((DOCS / "start.md").read_text()):
        if block.title:
            (folder / block.title).write_text(block.text)
        else:
            assert block.language == "bash"
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            ended = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "runs" / "start"


@pytest.mark.slow
def test_the_page_makes_records_with_held_out_tasks(folder):
    assert (folder / "data" / "report.md").is_file()
    assert "| eval | 0 |" not in (folder / "data" / "report.md").read_text()


@pytest.mark.slow
def test_the_page_trains_and_says_what_came_of_it(folder):
    assert "## Held-out" in (folder / "run" / "report.md").read_text()


@pytest.mark.slow
def test_the_page_completes_its_prompt_and_exports_the_model(folder):
    assert (folder / "completions.jsonl").read_text().count("\n") == 1
    assert (folder / "model" / "config.json").is_file()
    assert list((folder / "model").glob("*.safetensors"))
