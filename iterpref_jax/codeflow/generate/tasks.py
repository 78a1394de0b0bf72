"""What is to be solved: tasks of the user's own file, or places for tasks that a model writes from features."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator
from typing import Any

from iterpref_jax.codeflow import rows, syntax
from iterpref_jax.codeflow.generate import answers, features
from iterpref_jax.codeflow.generate.settings import STYLES, GenerateSettings
from iterpref_jax.errors import UserError, did_you_mean

FIELDS = ("task_id", "source", "instruction", "test_code", "setup_code", "style", "meta")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seed:
    """Where a task begins. `instruction` is empty if a model writes it from `features`; `test_code` is empty if a model
    writes the tests, in `style`."""

    task_id: str
    source: str
    instruction: str
    features: tuple[tuple[str, ...], ...]
    test_code: str
    setup_code: str
    style: str
    meta: dict[str, Any]


def from_file(path: rows.PathLike, style: str) -> Iterator[Seed]:
    """Yields the tasks of a file: `task_id`, `instruction` and, if there is need, `test_code`, `setup_code`, `source`,
    `style` (of these tests; default "script") and `meta`. Tests that are missing are written by the model in `style`.

    Raises:
        UserError: at the first row that is not a task.
    """
    seen: dict[str, str] = {}
    for place, row in rows.read_rows(path):
        rows.refuse_unknown(row, FIELDS, place, "put extra information under 'meta'")
        if "style" in row and not row.get("test_code"):
            raise UserError(
                f"{place}: 'style' is that of the field 'test_code', which is empty; see generate.test_style"
            )
        own = row.get("style", "script" if row.get("test_code") else style)
        row = {"source": rows.stem(path), "test_code": "", "setup_code": "", "meta": {}, **row, "style": own}
        texts = {name: rows.take(row, name, str, place) for name in FIELDS[:6]}
        for name in ("task_id", "instruction"):
            if not texts[name].strip():
                raise UserError(f"{place}: the field {name!r} is empty")
        if texts["style"] not in STYLES:
            hint = did_you_mean(texts["style"], STYLES)
            raise UserError(f"{place}: the style {texts['style']!r} is not one of {', '.join(STYLES)}{hint}")
        _check_tests(texts["test_code"], texts["style"], place)
        if texts["task_id"] in seen:
            raise UserError(f"{place}: the task_id {texts['task_id']!r} also stands at {seen[texts['task_id']]}")
        seen[texts["task_id"]] = place
        meta = rows.take(row, "meta", dict, place)
        if "task" in meta and not rows.take(meta, "task", str, f"{place}: meta"):
            raise UserError(f"{place}: the field 'task' of 'meta' is empty; name the task or leave it out")
        yield Seed(**texts, features=(), meta=meta)


def _check_tests(code: str, style: str, place: str) -> None:
    try:
        ending = answers.ending_line(syntax.parsed(code), style)
    except ValueError as error:
        raise UserError(f"{place}: the field 'test_code' is no Python: {error}") from error
    if ending:
        line = code.splitlines()[ending - 1].strip()[:60]
        raise UserError(
            f"{place}: the field 'test_code' ends the process in its line {ending} ({line}), which no program passes; "
            "leave that out" + ("" if style != "script" else ", or name the style: unittest, pytest")
        )


def from_features(tree: features.Tree, settings: GenerateSettings) -> Iterator[Seed]:
    """Yields `settings.tasks` places for tasks, each with its features drawn by seed and number."""
    for number in range(settings.tasks):
        # A string seeds by its SHA-512, the same in every process.
        rng = random.Random(f"{settings.seed}:features:{number}")
        drawn = features.sample(tree, settings.features_per_task, settings.feature_temperature, rng)
        yield Seed(
            task_id=f"generated-{settings.seed}-{number:06d}",
            source="generated",
            instruction="",
            features=tuple(drawn),
            test_code="",
            setup_code="",
            style=settings.test_style,
            meta={},
        )


def in_shard(seed: Seed, shard: tuple[int, int]) -> bool:
    """Whether a task belongs to shard (number from 0, count): by a hash of its name, wherever it stands in a file."""
    number, count = shard
    name = seed.meta.get("task", seed.task_id)
    digest = hashlib.sha256(str(name).encode()).digest()
    return int.from_bytes(digest[:8], "big") % count == number
