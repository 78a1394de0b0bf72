"""BigCodeBench (Zhuo et al. 2024, Apache-2.0): functions that use many libraries, judged by unittest cases."""

from __future__ import annotations

from typing import Any

from iterpref_jax.codeflow.rows import read_rows
from iterpref_jax.errors import UserError, did_you_mean
from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of
from iterpref_jax.evaluate.benchmarks.file import read as read_file
from iterpref_jax.evaluate.stops import BASE, HUMAN_EVAL
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Prompts, Suite, Task, UnitTests

COLUMNS = ("task_id", "complete_prompt", "instruct_prompt", "canonical_solution", "code_prompt", "test", "entry_point")
SPLITS = ("complete", "instruct")
# Found with the pinned libraries, in a sandbox: of the hard tasks all others pass.
NETWORK, NLTK = "its tests fetch a file from the internet", "it needs data of NLTK, which are no package"
EXCEPTIONS = {
    "BigCodeBench/101": NETWORK,
    "BigCodeBench/177": NLTK,
    "BigCodeBench/590": NETWORK,
    "BigCodeBench/655": NLTK,
    "BigCodeBench/1006": NETWORK,
    "BigCodeBench/1012": NETWORK,
}


def read(source: Source, choice: Choice) -> Benchmark:
    """Reads BigCodeBench's rows, or the one object of all tasks that its repository publishes.

    The split `instruct` has no code to continue, so a base model cannot be asked.
    """
    if choice.split not in SPLITS:
        raise UserError(
            f"evaluate.split: {choice.split!r} is not known{did_you_mean(choice.split, SPLITS)}; known: "
            + ", ".join(SPLITS)
        )
    tasks = [_task(row, choice.split) for row in _rows(source)]
    return benchmark_of(
        source,
        tasks,
        stops=BASE + HUMAN_EVAL,
        max_new_tokens=1280,
        clean="bigcodebench",
        limits=Limits(wall_s=240.0, cpu_s=240, memory_mb=30 * 1024),
        exceptions={task.task_id: EXCEPTIONS[task.task_id] for task in tasks if task.task_id in EXCEPTIONS},
    )


def _rows(source: Source) -> list[dict[str, Any]]:
    first = next(iter(read_rows(source.path)))[1]
    if "task_id" in first:
        return [row for _, row in read_file(source, COLUMNS)]
    for name, row in first.items():
        missing = [column for column in COLUMNS if not isinstance(row, dict) or column not in row]
        if missing:
            raise UserError(
                f"{source.path}: {name}: the column {missing[0]!r} is missing; is this BigCodeBench's file?"
            )
    return list(first.values())


def _task(row: dict[str, Any], split: str) -> Task:
    complete = split == "complete"
    return Task(
        task_id=row["task_id"],
        prompts=Prompts(
            code=row["complete_prompt"] if complete else "", request=row[f"{split}_prompt"], fenced=complete
        ),
        entry_point=row["entry_point"],
        canonical=row["complete_prompt"] + "\n" + row["canonical_solution"],
        suites=(Suite(name="base", tests=UnitTests(tests=row["test"])),),
        # "Calibrated": a model that leaves the imports of the prompt out is not failed for that.
        prefix=row["code_prompt"] + "\n    pass\n",
    )
