"""Form `git`: commits after which a test passes that failed before; a program is one file, its tests another or its
own doctests."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import datetime
import pathlib
from collections.abc import Iterator
from typing import Any

from iterpref_jax.codeflow import rows
from iterpref_jax.codeflow.imports import git_repository, module_tests
from iterpref_jax.codeflow.imports.candidates import Candidate, Dropped, Item, State
from iterpref_jax.codeflow.imports.columns import Columns
from iterpref_jax.codeflow.imports.git_repository import Change, Commit, Repository
from iterpref_jax.codeflow.imports.source import Source
from iterpref_jax.codeflow.syntax import tree_of

_FOLDERS_OF_TESTS = ("test", "tests", "testing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judge:
    """Tests of a style of the sandbox's and where they come from: a path, or "doctest"."""

    tests: str
    style: str
    origin: str


def read(source: Source) -> Iterator[Item]:
    """Yields, for every commit and every Python file that it changed, the file before and after.

    The tests are those of the commit, on both versions: a test file of the file's name that imports it, else the
    doctests of the file. Files without either are left out.
    """
    for path in source.paths:
        with git_repository.open_repository(path) as repository:
            for commit in repository.commits():
                yield from _items(repository, commit, source)


def fits(row: rows.Row, columns: Columns) -> bool:
    """A repository has no rows."""
    return False


def _items(repository: Repository, commit: Commit, source: Source) -> Iterator[Item]:
    changes = [change for change in commit.changes if _is_program(change)]
    if not changes:
        return
    paths = repository.paths(commit.name)
    for change in changes:
        before, after = repository.text(change.old_blob), repository.text(change.new_blob)
        if before is None or after is None or before == after:
            continue
        tree = tree_of(after)
        judge = _judge(repository, commit, change, after, paths) if tree is not None else None
        if tree is None or judge is None:
            continue
        name = f"{_repository_name(repository.path)}/{change.path}@{commit.name[:12]}"
        if _imports_neighbours(tree):
            yield Dropped(name=name, reason="not_self_contained")
            continue
        yield Candidate(
            name=name,
            task=f"{_repository_name(repository.path)}/{change.path}",
            source=f"git {_repository_name(repository.path)}",
            instruction=_instruction(change.path, tree),
            setup=source.setup,
            tests=judge.tests,
            style=judge.style,
            states=(State(code=before), State(code=after)),
            order="whole",
            meta=_meta(commit, change, judge),
        )


def _is_program(change: Change) -> bool:
    both = (change.old_path, change.path)
    return change.status in "MR" and all(path.endswith(".py") and not _is_test(path) for path in both)


def _is_test(path: str) -> bool:
    *folders, name = path.split("/")
    stem = name.removesuffix(".py")
    return (
        stem.startswith("test_")
        or stem.endswith("_test")
        or stem == "conftest"
        or any(folder in _FOLDERS_OF_TESTS for folder in folders)
    )


def _judge(repository: Repository, commit: Commit, change: Change, code: str, paths: list[str]) -> _Judge | None:
    for path in _test_paths(change.path, paths):
        text = repository.text(f"{commit.name}:{path}")
        tree = tree_of(text) if text is not None else None
        if text is None or tree is None:
            continue
        package = ".".join(path.split("/")[:-1])
        names = module_tests.imported(tree, package) & _module_names(change.path)
        if names:
            tests, style = module_tests.as_module_tests(text, tree, names=names, package=package)
            return _Judge(tests=tests, style=style, origin=path)
    tests = module_tests.doctests(code)
    return _Judge(tests=tests, style="unittest", origin="doctest") if tests else None


def _test_paths(path: str, paths: list[str]) -> list[str]:
    """The test files of the file's name, those that lie nearest first."""
    stem = pathlib.PurePosixPath(path).stem
    if stem == "__init__":
        stem = pathlib.PurePosixPath(path).parent.name
    wanted = {f"test_{stem}.py", f"{stem}_test.py", f"{stem}_tests.py", f"tests_{stem}.py"}
    found = [other for other in paths if other.split("/")[-1] in wanted]
    folders = path.split("/")[:-1]
    return sorted(found, key=lambda other: (-_shared(folders, other.split("/")[:-1]), len(other), other))


def _shared(one: list[str], other: list[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _module_names(path: str) -> set[str]:
    """`src/a/b.py` may be imported as `src.a.b`, `a.b` or `b`, by where the tests are started."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return {".".join(parts[start:]) for start in range(len(parts))}


def _imports_neighbours(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def _instruction(path: str, tree: ast.Module) -> str:
    """The path, and what the docstrings say without their examples: the prompt must not hold the tests."""
    lines = [f"Write the Python module `{path}`."]
    lines += _said(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            said = " ".join(_said(node))
            lines.append(f"- `{node.name}({ast.unparse(node.args)})`{': ' + said if said else ''}")
        elif isinstance(node, ast.ClassDef):
            said = " ".join(_said(node))
            lines.append(f"- class `{node.name}`{': ' + said if said else ''}")
    return "\n".join(lines) + "\n"


def _said(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    text = (ast.get_docstring(node) or "").partition(">>>")[0]
    return [line.strip() for line in text.strip().split("\n\n")[0].splitlines() if line.strip()]


def _meta(commit: Commit, change: Change, judge: _Judge) -> dict[str, Any]:
    renamed = {"renamed_from": change.old_path} if change.old_path != change.path else {}
    about = {"commit": commit.name, "message": commit.subject, "test_file": judge.origin}
    # git keeps any number, also one of a time that no calendar has.
    with contextlib.suppress(OverflowError, ValueError, OSError):
        about["date"] = datetime.datetime.fromtimestamp(commit.seconds, datetime.UTC).isoformat()
    return about | renamed


def _repository_name(path: str) -> str:
    return pathlib.Path(path).resolve().name.removesuffix(".git")
