"""The tests of a task, in the ways that data sets write them down, and files of tests by task."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from iterpref_jax.codeflow import rows, stdin_cases, syntax
from iterpref_jax.codeflow.imports import module_tests
from iterpref_jax.codeflow.imports.columns import Columns, Field, parsed
from iterpref_jax.errors import UserError

TASK = Field(
    name="task",
    aliases=("task", "task_id", "problem_id", "problem", "slug", "name", "id", "question_id", "task.task_id"),
)
TASK_FIELDS = (
    Field(
        name="instruction",
        aliases=(
            "instruction",
            "problem_description",
            "description",
            "question_content",
            "question",
            "text",
            "prompt",
            "problem_statement",
            "task.prompt",
        ),
    ),
    Field(name="tests", aliases=("test_code", "tests", "test", "test_list", "unit_tests", "task.reference")),
    Field(name="cases", aliases=("input_output", "cases", "test_cases", "examples_io")),
    Field(name="public_tests", aliases=("public_tests", "public_test_cases")),
    Field(name="private_tests", aliases=("private_tests", "private_test_cases")),
    Field(name="generated_tests", aliases=("generated_tests",)),
    Field(name="setup", aliases=("setup_code", "test_setup_code", "test_imports", "test_setup", "import")),
    Field(name="entry_point", aliases=("entry_point", "fn_name", "function_name", "func_name")),
    Field(name="style", aliases=("style", "test_style")),
)
_CASE_FIELDS = ("public_tests", "private_tests", "generated_tests", "cases")
# It stands in the module of the program, whose own names are not to be touched.
_CALLS = """\
def __iterpref_plain__(value):
    return [__iterpref_plain__(item) for item in value] if isinstance(value, (list, tuple)) else value


__iterpref_inf__ = 1e999
__iterpref_nan__ = __iterpref_inf__ - __iterpref_inf__
__iterpref_entry__ = getattr(globals()["Solution"](), NAME) if "Solution" in globals() else globals()[NAME]
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskTests:
    """Tests as `Candidate` holds them: `code` in the manner of `style`, "" where there are none."""

    code: str
    setup: str
    style: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a file of tests says of a task."""

    instruction: str
    tests: TaskTests


def read_tasks(path: rows.PathLike, max_cases: int) -> dict[str, Task]:
    """Returns the tasks of a file of tests by their names; raises UserError for a task that stands twice."""
    columns = Columns((TASK, *TASK_FIELDS), {})
    tasks: dict[str, Task] = {}
    for place, row in rows.read_rows(path, allow_nan=True):
        name = columns.needed(row, "task", place)
        if name in tasks:
            raise UserError(f"{place}: the task {name!r} has tests already; a file of tests holds a task once")
        tests = find_tests(row, columns, place, max_cases)
        tasks[name] = Task(instruction=columns.text(row, "instruction", place), tests=tests)
    return tasks


def find_tests(row: rows.Row, columns: Columns, place: str, max_cases: int) -> TaskTests:
    """Returns the tests of a row: code if there is any, else the first `max_cases` cases of inputs and outputs."""
    setup = _setup(row, columns, place)
    entry_point = columns.text(row, "entry_point", place)
    value = columns.value(row, "tests", place)
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        value = parsed(value, place)
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value) + "\n"
    if isinstance(value, str):
        style = columns.text(row, "style", place)
        if style == stdin_cases.STYLE:
            raise UserError(f"{place}: style {style!r} is for cases of input and output, and the tests are code")
        return _from_code(value, setup, entry_point, style)
    groups = [value, *(columns.value(row, name, place) for name in _CASE_FIELDS)]
    return _from_cases([parsed(group, place) for group in groups if group], setup, entry_point, place, max_cases)


def _setup(row: rows.Row, columns: Columns, place: str) -> str:
    value = columns.value(row, "setup", place)
    if isinstance(value, list):
        value = "\n".join(map(str, value))
    if value is None and isinstance(row.get("prompt"), str) and row.get("problem_description"):
        # LeetCodeDataset's prompt is the imports and classes that its solutions expect.
        value = row["prompt"] if syntax.tree_of(row["prompt"]) else None
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place}: the field 'setup' must be a string or a list of lines, not {rows.shown(value)}")
    return value.rstrip("\n") + "\n" if value else ""


def _from_code(code: str, setup: str, entry_point: str, style: str) -> TaskTests:
    tree = syntax.tree_of(code)
    if style or tree is None:
        return TaskTests(code=code, setup=setup, style=style or "script")
    in_module = module_tests.MODULE in module_tests.imported(tree, "")
    if in_module or module_tests.is_unittest(tree):
        wanted = code if in_module else f"from {module_tests.MODULE} import *\n{code}"
        adapted, style = module_tests.as_module_tests(wanted, tree)
        return TaskTests(code=adapted, setup=setup, style=style)
    return _as_script(code, tree, setup, entry_point)


def _as_script(code: str, tree: ast.Module, setup: str, entry_point: str) -> TaskTests:
    called = {node.func.id for node in _top_calls(tree) if isinstance(node.func, ast.Name)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if "check" in defined and "check" not in called and entry_point:
        return TaskTests(code=f"{code.rstrip()}\n\ncheck({entry_point})\n", setup=setup, style="script")
    tests = module_tests.plain_test_functions(tree)
    if tests is None:
        return TaskTests(code=code, setup=setup, style="pytest")
    calls = "".join(f"{name}()\n" for name in tests if name not in called)
    return TaskTests(code=f"{code.rstrip()}\n\n\n{calls}" if calls else code, setup=setup, style="script")


def _top_calls(tree: ast.Module) -> Iterator[ast.Call]:
    for statement in tree.body:
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from (node for node in ast.walk(statement) if isinstance(node, ast.Call))


def _from_cases(groups: list[Any], setup: str, entry_point: str, place: str, max_cases: int) -> TaskTests:
    inputs: list[Any] = []
    outputs: list[Any] = []
    for group in groups:
        given, wanted, named = _columns_of(group, place)
        entry_point = entry_point or named
        inputs += given
        outputs += wanted
    inputs, outputs = inputs[:max_cases], outputs[:max_cases]
    if not inputs:
        return TaskTests(code="", setup=setup, style="script")
    if entry_point:
        return TaskTests(code=_call_script(entry_point, inputs, outputs, place), setup=setup, style="script")
    return TaskTests(code=stdin_cases.text_of(inputs, outputs), setup=setup, style=stdin_cases.STYLE)


def _columns_of(group: Any, place: str) -> tuple[list[Any], list[Any], str]:
    """Returns inputs, outputs and the function's name, from an object of lists or a list of objects."""
    if isinstance(group, list) and all(
        isinstance(case, Mapping) and {"input", "output"} <= case.keys() for case in group
    ):
        return [case["input"] for case in group], [case["output"] for case in group], ""
    if isinstance(group, Mapping):
        inputs, outputs = (group.get(f"{name}s", group.get(name, [])) for name in ("input", "output"))
        if isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs):
            return inputs, outputs, str(group.get("fn_name") or "")
    raise UserError(
        f"{place}: cases must be a list of objects with 'input' and 'output', or an object with two lists of one "
        f"length, not {rows.shown(group)}"
    )


def _call_script(entry_point: str, inputs: list[Any], outputs: list[Any], place: str) -> str:
    """Returns assertions that call a function, or a method of `Solution`; tuples and lists are alike, as in JSON."""
    lines = [_CALLS.replace("NAME", repr(entry_point.removeprefix("Solution().")))]
    for given, wanted in zip(inputs, outputs, strict=True):
        # LiveCodeBench holds one JSON value a line, APPS and TACO lists.
        arguments = [parsed(line, place) for line in given.split("\n")] if isinstance(given, str) else given
        wanted = parsed(wanted, place) if isinstance(wanted, str) and isinstance(given, str) else wanted
        arguments = arguments if isinstance(arguments, list) else [arguments]
        call = f"__iterpref_entry__(*{_literal(arguments)})"
        lines.append(f"assert __iterpref_plain__({call}) == {_literal(wanted)}\n")
    return "".join(lines)


def _literal(value: Any) -> str:
    """Returns what Python reads as a value of JSON, in which numbers may be infinite or none."""
    text = repr(value)
    if "inf" not in text and "nan" not in text:
        return text
    if isinstance(value, float):
        return text.replace("inf", "__iterpref_inf__").replace("nan", "__iterpref_nan__")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_literal(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_literal, value)) + "]" if isinstance(value, list) else text
