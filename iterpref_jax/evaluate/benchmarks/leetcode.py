"""LeetCodeDataset (Xia et al. 2025, MIT): problems with a starter class, its setup, and a `check` of assertions."""

from __future__ import annotations

from typing import Any

from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of
from iterpref_jax.evaluate.benchmarks.file import read as read_file
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Prompts, ScriptTests, Suite, Task

COLUMNS = ("task_id", "prompt", "completion", "entry_point", "test", "query", "difficulty")


def read(source: Source, choice: Choice) -> Benchmark:
    """Reads a LeetCodeDataset file; its `query` is the chat prompt that its authors publish scores with."""
    del choice
    tasks = [_task(row) for _, row in read_file(source, COLUMNS)]
    return benchmark_of(
        source,
        tasks,
        stops=(),
        max_new_tokens=2048,
        clean="last_fence",
        # The published tests of two problems take their solutions 6 to 10 s on an idle core, and over 20 s of CPU time
        # where other work shares its caches and threads.
        limits=Limits(wall_s=120.0, cpu_s=60),
    )


def _task(row: dict[str, Any]) -> Task:
    return Task(
        task_id=row["task_id"],
        prompts=Prompts(messages=(("user", row["query"]),)),
        entry_point=row["entry_point"],
        canonical=row["completion"],
        suites=(
            Suite(
                name="base",
                tests=ScriptTests(setup=row["prompt"], tests=f"{row['test']}\n\ncheck({row['entry_point']})\n"),
            ),
        ),
        tags=(row["difficulty"],),
    )
