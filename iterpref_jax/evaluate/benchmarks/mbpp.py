"""MBPP (Austin et al. 2021, CC-BY-4.0): 974 short tasks with three assertions each; 11 to 510 are the test split."""

from __future__ import annotations

import ast
import warnings
from typing import Any

from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of
from iterpref_jax.evaluate.benchmarks.file import read as read_file
from iterpref_jax.evaluate.stops import BASE, MBPP
from iterpref_jax.evaluate.tasks import Benchmark, Limits, Prompts, ScriptTests, Suite, Task

COLUMNS = ("task_id", "text", "code", "test_list", "test_setup_code")
TEST_SPLIT = range(11, 511)


def read(source: Source, choice: Choice) -> Benchmark:
    """Reads the test split of mbpp.jsonl."""
    return _read(source, choice, lambda number: number in TEST_SPLIT)


def read_all(source: Source, choice: Choice) -> Benchmark:
    """Reads every row of mbpp.jsonl; 601 to 974 are what models are trained on."""
    return _read(source, choice, lambda number: True)


def _read(source: Source, choice: Choice, is_wanted: Any) -> Benchmark:
    del choice
    tasks = [_task(row) for _, row in read_file(source, COLUMNS) if is_wanted(row["task_id"])]
    return benchmark_of(
        source,
        tasks,
        stops=BASE + MBPP,
        max_new_tokens=768,
        clean="evalplus",
        limits=Limits(),
    )


def _task(row: dict[str, Any]) -> Task:
    first, code = row["test_list"][0], row["code"].replace("\r\n", "\n")
    prompt = docstring(row["text"], first)
    # The setup uses what the program defines (a tree of its nodes), so it comes after the program.
    tests = "\n".join([row["test_setup_code"].replace("\r\n", "\n"), *row["test_list"], ""])
    return Task(
        task_id=f"Mbpp/{row['task_id']}",
        prompts=Prompts(code=prompt, request=prompt),
        entry_point=called_name(first, code),
        canonical=code,
        suites=(Suite(name="base", tests=ScriptTests(setup="", tests=tests)),),
    )


def docstring(text: str, assertion: str) -> str:
    """Returns the prompt that EvalPlus shows: a docstring of the text and the first assertion."""
    return f'"""\n{text}\n{assertion}\n"""\n'


def called_name(assertion: str, code: str) -> str:
    """Returns the function of `code` that an assertion calls first, from the outside in; "" if it calls none.

    >>> called_name("assert set(similar((3, 4), (5, 4))) == set((4,))", "def similar(a, b): ...")
    'similar'
    """
    with warnings.catch_warnings():
        # Of escapes in strings, which published solutions have.
        warnings.simplefilter("ignore")
        tree = ast.parse(code)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    calls = (node.func.id for node in _in_order(ast.parse(assertion.strip())) if _is_named_call(node))
    return next((name for name in calls if name in defined), "")


def _in_order(tree: ast.AST) -> Any:
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _in_order(child)


def _is_named_call(node: Any) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
