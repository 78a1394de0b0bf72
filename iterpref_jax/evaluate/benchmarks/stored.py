"""A file of trajectories (`codeflow.records`) as a benchmark: instructions, tests, and last versions as solutions."""

from __future__ import annotations

import dataclasses

from iterpref_jax.codeflow import records
from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Prompts, ScriptTests, Suite, Task


def read(source: Source, choice: Choice) -> Benchmark:
    """Reads trajectories.jsonl: one task for every `task`, the first history of it."""
    del choice
    tasks: dict[str, Task] = {}
    for trajectory in records.read_trajectories(source.path):
        tests = ScriptTests(setup=trajectory.setup_code, tests=trajectory.test_code)
        last = trajectory.versions[-1]
        task = Task(
            task_id=trajectory.task,
            prompts=Prompts(messages=(("user", trajectory.instruction),)),
            entry_point="",
            canonical=last.code if last.passed else "",
            suites=(Suite(name="base", tests=tests),),
        )
        tasks.setdefault(trajectory.task, task)
    return benchmark_of(
        dataclasses.replace(source, version="trajectories"),
        tasks.values(),
        stops=(),
        max_new_tokens=1024,
        clean="last_fence",
        limits=Limits(),
    )
