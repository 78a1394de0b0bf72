"""A file of trajectories (`codeflow.records`) as a benchmark: instructions, tests, and last versions as solutions."""

from __future__ import annotations

import dataclasses

from iterpref_jax.codeflow import records
from iterpref_jax.codeflow.imports import own_trajectories
from iterpref_jax.codeflow.imports.candidates import STYLES
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Prompts, StoredTests, Suite, Task


def read(source: Source, choice: Choice) -> Benchmark:
    """Reads trajectories.jsonl: one task for every `meta.task`, the first history of it; a row without is one itself.

    Raises:
        UserError: tests of a style that there is not, or that are not what their style says.
    """
    del choice
    tasks: dict[str, Task] = {}
    for trajectory in records.read_trajectories(source.path):
        last = trajectory.versions[-1]
        # Not `trajectory.task`: a person reads this name, and equal instructions may come with different tests.
        name = trajectory.meta.get("task", trajectory.task_id)
        task = Task(
            task_id=name,
            prompts=Prompts(messages=(("user", trajectory.instruction),)),
            entry_point="",
            canonical=last.code if last.passed else "",
            suites=(Suite(name="base", tests=_tests(trajectory, source.path)),),
        )
        tasks.setdefault(name, task)
    return benchmark_of(
        dataclasses.replace(source, version="trajectories"),
        tasks.values(),
        stops=(),
        max_new_tokens=1024,
        clean="last_fence",
        limits=Limits(),
    )


def _tests(trajectory: records.Trajectory, path: str) -> StoredTests:
    tests = own_trajectories.tests_of(trajectory, path)
    if tests.style not in STYLES:
        hint = did_you_mean(tests.style, STYLES)
        raise UserError(
            f"{path}: {trajectory.task_id}: meta.style {tests.style!r} is not known{hint}; known: {', '.join(STYLES)}"
        )
    return StoredTests(style=tests.style, setup=tests.setup, tests=tests.code)
