"""Imports of a few rows, as the tests need them."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import pytest

from iterpref_jax import settings
from iterpref_jax.codeflow import records
from iterpref_jax.codeflow.imports import forms
from iterpref_jax.codeflow.imports.run import TRAJECTORIES, Request, import_files
from iterpref_jax.codeflow.imports.source import ImportSettings
from iterpref_jax.codeflow.sandbox import SandboxSettings

ROOT = pathlib.Path(__file__).parents[3]
UNSAFE = ("sandbox.tier=rlimit", "sandbox.allow_unsafe=True", "sandbox.wall_s=5.0", "sandbox.cpu_s=2")
SANDBOX: SandboxSettings = settings.read_section(settings.load_config(str(ROOT / "configs/base.py"), UNSAFE), "sandbox")
LIMITS = ImportSettings(max_solutions=8, max_cases=50)


RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"
ADD = {"task_id": "add", "instruction": "Add.", "test_code": "assert add(1, 2) == 3\n"}
FIX = {**ADD, "buggy_code": WRONG, "fixed_code": RIGHT}
ECHO = {
    "name": "double",
    "description": "Double it.",
    "public_tests": {"input": ["2\n", "5\n"], "output": ["4\n", "10\n"]},
}


def write(path: pathlib.Path, rows) -> str:
    """Writes JSON Lines, or text as it is."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def run_import(folder: pathlib.Path, form: str, rows, *, tests=None, name="in.jsonl", limits=LIMITS, **changes):
    """Imports rows (or the file or folder of a path) into `folder/out`; returns the trajectories and the report."""
    path = str(rows) if isinstance(rows, pathlib.Path) else write(folder / name, rows)
    request = Request(
        form=forms.find_form(form),
        paths=[path],
        renamed=changes.pop("renamed", {}),
        tests=write(folder / "tests.jsonl", tests) if tests else "",
        setup=changes.pop("setup", ""),
    )
    sandbox = dataclasses.replace(SANDBOX, **changes)
    report = import_files(request, folder / "out", limits, sandbox)
    text = (folder / "out" / TRAJECTORIES).read_text()
    return list(records.read_trajectories(folder / "out" / TRAJECTORIES)) if text else [], report


def codes(trajectory) -> list[str]:
    return [version.code for version in trajectory.versions]


def real(*parts: str) -> pathlib.Path:
    """Returns a file of the real data; skips the test where it is absent."""
    path = pathlib.Path(os.environ.get("ITERPREF_DATA", "")).joinpath(*parts)
    if not os.environ.get("ITERPREF_DATA") or not path.exists():
        pytest.skip(f"ITERPREF_DATA does not name a folder with {'/'.join(parts)}")
    return path
