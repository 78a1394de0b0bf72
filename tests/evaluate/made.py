"""Benchmarks of two tasks, and a sandbox that tests open once."""

import json
import os
from pathlib import Path

import pytest

from iterpref_jax.evaluate.benchmarks.file import Choice
from iterpref_jax.evaluate.evaluation import EvaluateSettings
from iterpref_jax.evaluate.judging import Judged, Outcome
from iterpref_jax.evaluate.samples import Verdict
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Prompts, ScriptTests, Suite, Task
from tests.support.sandboxes import sandbox_settings

SANDBOX = sandbox_settings(tier="auto", wall_s=10.0, cpu_s=5, memory_mb=1024, output_kb=1024)
CHOICE = Choice(split="complete", since="", until="", limit=0, shots="")


def settings(**changes) -> EvaluateSettings:
    known = dict(
        prompt_style="base",
        compat="head",
        n=1,
        temperature=0.0,
        top_p=1.0,
        max_new_tokens=0,
        seed=0,
        split="complete",
        since="",
        until="",
        limit=0,
        shots="",
        reference_must_pass=False,
        pass_at=(1, 10),
        draws=200,
    )
    return EvaluateSettings(**known | changes)


def task(name: str, operator: str) -> Task:
    code = f'def {name}(a, b):\n    """Returns a {operator} b."""\n'
    return Task(
        task_id=f"made/{name}",
        prompts=Prompts(code=code, request=code),
        entry_point=name,
        canonical=f"{code}    return a {operator} b\n",
        suites=(
            Suite(
                name="base", tests=ScriptTests(setup="", tests=f"assert {name}(4, 2) == {eval(f'4 {operator} 2')}\n")
            ),
            Suite(
                name="plus", tests=ScriptTests(setup="", tests=f"assert {name}(9, 5) == {eval(f'9 {operator} 5')}\n")
            ),
        ),
    )


def benchmark(*tasks: Task, **changes) -> Benchmark:
    known = dict(
        name="made",
        version="1",
        source="made.jsonl",
        sha256="0" * 64,
        tasks=tasks or (task("add", "+"), task("less", "-")),
        stops=("\ndef ",),
        max_new_tokens=32,
        clean="evalplus",
        limits=Limits(),
    )
    return Benchmark(**known | changes)


def verdict(task_id: str, error: str = "", message: str = "", sample: int = 0) -> Verdict:
    """A verdict of a program that passed, or failed its first suite with an error."""
    outcomes = tuple(
        Outcome(
            suite=suite,
            status="error" if error else "pass",
            error_type=error,
            message=message,
            last_frame="",
            traceback=f"{error}: {message}" if error else "",
            seconds=0.1,
            failing={error: 2} if error else {},
        )
        for suite in (("base",) if error else ("base", "plus"))
    )
    return Verdict(task_id=task_id, sample=sample, solution="x = 1\n", judged=Judged(outcomes=outcomes, tier="bwrap"))


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def real(name: str) -> str:
    """A benchmark's real file; skips the test where it is absent."""
    path = Path(os.environ.get("ITERPREF_DATA", "")) / "benchmarks" / name
    if not os.environ.get("ITERPREF_DATA") or not path.exists():
        pytest.skip(f"ITERPREF_DATA does not name a folder with benchmarks/{name}")
    return str(path)
