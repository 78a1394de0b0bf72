"""LiveCodeBench (Jain et al. 2024, code generation): contest problems with dates, judged by stdin or by calls."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from typing import Any, NoReturn

from iterpref_jax.codeflow.rows import read_rows
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of
from iterpref_jax.evaluate.benchmarks.file import read as read_file
from iterpref_jax.evaluate.tasks import Benchmark, Limits, MethodTests, Prompts, StdinTests, Suite, Task, Tests

COLUMNS = (
    "question_id",
    "question_title",
    "question_content",
    "contest_date",
    "difficulty",
    "starter_code",
    "public_test_cases",
    "private_test_cases",
    "metadata",
)
CASE_S = 6.0
SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)
# What a solution may use without importing it.
STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
    "builtins typing"
)
PLAIN = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
SETUP = "".join(
    [
        *(f"from {name} import *\n" for name in STARRED.split()),
        *(f"import {name}\n" for name in PLAIN.split()),
        "sys.setrecursionlimit(50000)\n",
    ]
)


class _NoNames(pickle.Unpickler):
    """Loads texts, numbers and containers of them; a name of anything else is refused before it is looked up."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read(source: Source, choice: Choice) -> Benchmark:
    """Reads the rows of a release, or a window of their dates; private cases are unpacked without running anything."""
    shots = _shots(choice.shots)
    tasks = [_task(row, place, shots) for place, row in read_file(source, COLUMNS) if _is_in(row, choice)]
    return benchmark_of(
        source,
        tasks,
        stops=("###",),
        max_new_tokens=2000,
        clean="last_fence",
        # Upstream there is no limit of all cases together; nobody waits for more than this.
        limits=Limits(wall_s=300.0, cpu_s=300, memory_mb=4096),
    )


def _is_in(row: dict[str, Any], choice: Choice) -> bool:
    date = str(row["contest_date"])[:10]
    return (not choice.since or date >= choice.since) and (not choice.until or date <= choice.until)


def _task(row: dict[str, Any], place: str, shots: dict[str, str]) -> Task:
    tests = _tests(row, place)
    kind = "func" if row["starter_code"] else "stdin"
    starter = f"### Starter Code\n{row['starter_code']}\n\n" if row["starter_code"] else ""
    asked = f"### Question\n{row['question_content']}\n\n{starter}### Answer\n\n"
    return Task(
        task_id=str(row["question_id"]),
        prompts=Prompts(
            code=shots[kind] + asked if shots else "", messages=(("system", SYSTEM), ("user", _question(row)))
        ),
        entry_point="",
        canonical="",
        suites=(Suite(name="base", tests=tests),),
        tags=(str(row["difficulty"]),),
    )


def _question(row: dict[str, Any]) -> str:
    starter = row["starter_code"]
    how, code = (WITH_STARTER, starter) if starter else (WITHOUT_STARTER, "# YOUR CODE HERE")
    return (
        f"### Question:\n{row['question_content']}\n\n### Format: {how}\n```python\n{code}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )


def _tests(row: dict[str, Any], place: str) -> Tests:
    try:
        found = json.loads(row["public_test_cases"]) + _private(row["private_test_cases"])
        name = json.loads(row["metadata"]).get("func_name")
        cases = tuple((case["input"], case["output"]) for case in found)
    except (ValueError, TypeError, KeyError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise UserError(f"{place}: the test cases cannot be read ({error}); is this LiveCodeBench's file?") from error
    if not cases:
        raise UserError(f"{place}: there is no test case")
    if name:
        return MethodTests(setup=SETUP, entry_point=name, cases=cases, case_s=CASE_S)
    return StdinTests(setup=SETUP, cases=cases, case_s=CASE_S)


def _private(text: str) -> list[dict[str, str]]:
    """Private cases are JSON, or base64 of zlib of a pickle of that JSON."""
    try:
        return json.loads(text)
    except ValueError:
        packed = zlib.decompress(base64.b64decode(text, validate=True))
    return json.loads(_NoNames(io.BytesIO(packed)).load())


def _shots(folder: str) -> dict[str, str]:
    """The one example in front of a base model's question: LiveCodeBench's own func.json and stdin.json."""
    if not folder:
        return {}
    found = {}
    for kind in ("func", "stdin"):
        row = next(row for _, row in read_rows(f"{folder}/{kind}.json"))
        starter = f"### Starter Code\n{row['sample_code']}\n\n" if kind == "func" else ""
        found[kind] = f"### Question\n{row['question']}\n\n{starter}### Answer\n\n{row['answer']}\n\n"
    return found
