"""Form `traces`: conversations in which a model writes, runs and mends code (MINT, LDB, agents)."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from iterpref_jax.codeflow import rows, syntax
from iterpref_jax.codeflow.imports import programs, task_tests
from iterpref_jax.codeflow.imports.candidates import Dropped, Item, State
from iterpref_jax.codeflow.imports.columns import Columns, Field, parsed
from iterpref_jax.codeflow.imports.source import Source, find_task
from iterpref_jax.errors import UserError

FIELDS = (
    task_tests.TASK,
    *task_tests.TASK_FIELDS,
    Field(
        name="messages",
        aliases=("messages", "conversation", "conversations", "history", "trajectory", "turns", "state.history"),
    ),
    Field(name="programs", aliases=("implementations", "programs", "attempts")),
    Field(name="model", aliases=("model", "model_name", "agent")),
    Field(name="source", aliases=("source", "dataset")),
)
_WRITERS = ("assistant", "gpt", "model", "bot", "ai", "agent")
_ASKERS = ("user", "human")


def read(source: Source) -> Iterator[Item]:
    """Yields a history a row: the programs of the turns, up to the first that passes."""
    columns = source.columns(FIELDS)
    for number, (place, row) in enumerate(source.rows()):
        listed = columns.value(row, "programs", place)
        messages = parsed(columns.value(row, "messages", place) or [], place)
        turns = list(_turns(messages, place))
        task = find_task(row, columns, place, source, default=str(number))
        if not task.instruction:
            question = next((text for role, text in turns if role in _ASKERS), "")
            task = dataclasses.replace(task, instruction=question)
        codes = _texts(listed, place) if listed else _programs(turns, columns.text(row, "entry_point", place))
        if not codes:
            yield Dropped(name=task.name, reason="no_code")
            continue
        model = columns.text(row, "model", place)
        origin = columns.text(row, "source", place) or rows.stem(place.rsplit(",", 1)[0])
        states = [State(code=code) for code in codes]
        name, meta = (f"{task.name}/{model}", {"model": model}) if model else (task.name, {})
        yield task.candidate(name, states, "until_pass", origin, meta, source.setup)


def fits(row: rows.Row, columns: Columns) -> bool:
    """Whether a row looks like this form."""
    return columns.has(row, "messages") or columns.has(row, "programs")


def _turns(messages: Any, place: str) -> Iterator[tuple[str, str]]:
    if not isinstance(messages, list):
        raise UserError(f"{place}: the field 'messages' must be a list of messages, not {rows.shown(messages)}")
    for message in messages:
        if not isinstance(message, dict):
            raise UserError(
                f"{place}: a message must be an object with 'role' and 'content', not {rows.shown(message)}"
            )
        role = message.get("role", message.get("from", ""))
        content = message.get("content", message.get("value", ""))
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        yield str(role).lower(), str(content or "")


def _texts(value: Any, place: str) -> list[str]:
    codes = parsed(value, place)
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise UserError(f"{place}: the field 'programs' must be a list of programs, not {rows.shown(codes)}")
    return codes


def _programs(turns: list[tuple[str, str]], entry_point: str) -> list[str]:
    """One program a turn: the last block that defines what the task asks for, or what the last block of all defines.

    Agents also run snippets that try something out; those are no versions.
    """
    blocks = [programs.code_blocks(text) for role, text in turns if role in _WRITERS]
    wanted = {entry_point} if entry_point.isidentifier() else _defined_last(blocks)
    found = []
    for turn in blocks:
        whole = [block for block in turn if not wanted or wanted & _defined(block)]
        found += whole[-1:]
    return found


def _defined_last(blocks: list[list[str]]) -> set[str]:
    every = [names for turn in blocks for block in turn if (names := _defined(block))]
    return every[-1] if every else set()


def _defined(code: str) -> set[str]:
    tree = syntax.tree_of(code)
    if tree is None:
        # What does not parse is a version too.
        return set(re.findall(r"^(?:async )?(?:def|class)[ \t]+(\w+)", code, re.MULTILINE))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
