"""`results.json`: the scores of a run, its errors, and pass@1 of every task, which comparisons are made from."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import error_table, scores
from iterpref_jax.evaluate.evaluation import EvaluateSettings, verdicts_by_task
from iterpref_jax.evaluate.judging import Outcome
from iterpref_jax.evaluate.samples import RESULTS, Verdict
from iterpref_jax.evaluate.tasks import Benchmark

FORMAT = 1


def results(
    settings: EvaluateSettings,
    benchmark: Benchmark,
    verdicts: dict[tuple[str, int], Verdict],
    made_with: dict[str, Any],
    left_out: Mapping[str, Outcome] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Returns what `results.json` holds; `left_out` are the tasks that do not count, with what their references gave.

    Raises:
        UserError: a task has no verdict yet.
    """
    by_task = verdicts_by_task(benchmark, verdicts.values())
    lacking = [name for name, found in by_task.items() if not found]
    if lacking:
        raise UserError(f"{len(lacking)} tasks have no verdict, the first {lacking[0]}; run without --score-only first")
    counted = [verdict for found in by_task.values() for verdict in found]
    suites = [suite.name for suite in benchmark.tasks[0].suites]
    tiers = sorted({verdict.judged.tier for verdict in counted} - {""})
    return {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "version": benchmark.version or "unknown",
        "tasks": len(by_task),
        "samples": len(counted),
        "left_out": {name: _reason(outcome) for name, outcome in left_out.items()},
        "sandbox": tiers,
        "made_with": made_with,
        "scores": _scores(settings, suites, by_task),
        "scores_by_tag": _by_tag(settings, suites[-1], benchmark, by_task),
        "errors": [dataclasses.asdict(each) for each in error_table.error_classes(counted)],
        "errors_counted": error_table.COUNTING,
        "pass_at_1": {suite: _pass_at_1(by_task, suite) for suite in suites},
    }


def _reason(outcome: Outcome) -> dict[str, str]:
    return {"status": outcome.status, "error_type": outcome.error_type, "message": outcome.message}


def write(folder: Path, found: dict[str, Any]) -> Path:
    """Writes results.json, complete or not at all; returns its path."""
    path = folder / RESULTS
    replace_text(path, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return path


def read(folder: str) -> dict[str, Any]:
    """Reads the results of a run. Raises UserError where there are none."""
    path = Path(folder) / RESULTS
    if not path.exists():
        raise UserError(f"{path} does not exist: {folder} is not the folder of a finished `iterpref eval`")
    return json.loads(path.read_text(encoding="utf-8"))


def _scores(settings: EvaluateSettings, suites: list[str], by_task: dict[str, list[Verdict]]) -> list[dict[str, Any]]:
    least = min(map(len, by_task.values()))
    found = []
    for suite in suites:
        # Unbiased only where every task has k samples.
        for k in (k for k in settings.pass_at if k <= least):
            values = [_value(verdicts, suite, k) for verdicts in by_task.values()]
            interval = scores.score(values, draws=settings.draws, seed=settings.seed)
            found.append({"suite": suite, "k": k, **dataclasses.asdict(interval)})
    return found


def _by_tag(
    settings: EvaluateSettings, suite: str, benchmark: Benchmark, by_task: dict[str, list[Verdict]]
) -> list[dict[str, Any]]:
    tags = sorted({tag for task in benchmark.tasks for tag in task.tags})
    found = []
    for tag in tags:
        values = [_value(by_task[task.task_id], suite, 1) for task in benchmark.tasks if tag in task.tags]
        interval = scores.score(values, draws=settings.draws, seed=settings.seed)
        found.append({"tag": tag, "tasks": len(values), "suite": suite, "k": 1, **dataclasses.asdict(interval)})
    return found


def _pass_at_1(by_task: dict[str, list[Verdict]], suite: str) -> dict[str, float]:
    return {name: _value(verdicts, suite, 1) for name, verdicts in by_task.items()}


def _value(verdicts: list[Verdict], suite: str, k: int) -> float:
    passed = sum(verdict.judged.passes(suite) for verdict in verdicts)
    return scores.pass_at_k(len(verdicts), passed, k)
