"""The table of forms, and the guess which one a file has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from iterpref_jax.codeflow import rows
from iterpref_jax.codeflow.imports import (
    fixes,
    git_history,
    git_repository,
    own_trajectories,
    problems,
    submissions,
    traces,
)
from iterpref_jax.codeflow.imports.candidates import Item
from iterpref_jax.codeflow.imports.columns import Columns, Field
from iterpref_jax.codeflow.imports.source import Source
from iterpref_jax.errors import UserError, did_you_mean

AUTO = "auto"


class Form(NamedTuple):
    """How a kind of data is read; `takes_tests`: whether tests may come from another file."""

    name: str
    meaning: str
    read: Callable[[Source], Iterator[Item]]
    fits: Callable[[rows.Row, Columns], bool]
    fields: tuple[Field, ...]
    takes_tests: bool


# In the order in which they are tried: what is told by more columns comes first.
FORMS = (
    Form(
        "trajectories", "our own records", own_trajectories.read, own_trajectories.fits, own_trajectories.FIELDS, False
    ),
    Form("fixes", "wrong programs and their repairs", fixes.read, fixes.fits, fixes.FIELDS, True),
    Form("submissions", "who handed in what when", submissions.read, submissions.fits, submissions.FIELDS, True),
    Form("traces", "conversations with code in them", traces.read, traces.fits, traces.FIELDS, True),
    Form("problems", "tasks with many programs", problems.read, problems.fits, problems.FIELDS, True),
    Form("git", "a repository with tests", git_history.read, git_history.fits, (), False),
)


def find_form(name: str) -> Form:
    """Returns a form by its name; raises UserError."""
    for form in FORMS:
        if form.name == name:
            return form
    known = [form.name for form in FORMS]
    raise UserError(f"--form: {name!r} is no form{did_you_mean(name, known)}; known: {', '.join(known)}, {AUTO}")


def guess_form(path: str) -> tuple[Form, str]:
    """Returns the form that a file or folder has, and why; raises UserError where none fits."""
    if os.path.isdir(path):
        if git_repository.is_repository(path):
            return find_form("git"), "it is a repository"
        raise UserError(f"{path}: a folder, but no git repository; name a file, or a repository")
    place, row = next(rows.read_rows(path, allow_nan=True))
    for form in FORMS:
        if form.fits(row, Columns(form.fields, {})):
            return form, f"by the columns {', '.join(row)}"
    known = ", ".join(form.name for form in FORMS)
    raise UserError(
        f"{place}: no form fits the columns {', '.join(row)}; choose one with --form={known} and name its columns with "
        "--column=FIELD=COLUMN (docs/import.md)"
    )
