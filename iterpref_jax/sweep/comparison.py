"""All finished runs of a sweep side by side: means over seeds, and what differs from one variant, the baseline.

Two intervals answer two questions. Over seeds (Student's t): would another seed say the same? Over tasks (bootstrap of
the held-out tasks, values averaged over seeds): would other tasks say the same?
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from iterpref_jax.evaluate.bootstrap import TaskBootstrap
from iterpref_jax.sweep.planning import HELDOUT, Job
from iterpref_jax.train.metrics import read_metrics

LEVEL = 0.95
SAMPLES, SEED = 2000, 0
Figures = dict[str, float]


def figures(job: Job) -> Figures:
    """Returns the numbers of one finished run: held-out metrics, scores of its extra commands, and what it cost."""
    content = json.loads((job.folder / HELDOUT / "heldout.json").read_text())
    found = {name: value["value"] for name, value in content["overall"]["metrics"].items() if value is not None}
    found |= _of_commands(job.folder)
    lines = [line for line in read_metrics(job.folder / "metrics.jsonl") if line["split"] == "train"]
    pairs = sum(line["pairs_per_second"] * line["step_s"] for line in lines)
    tokens = sum(line["tokens_per_second"] * line["step_s"] for line in lines)
    cost = {"updates": len(lines), "pairs": round(pairs), "tokens": round(tokens)}
    cost["update_s"] = sum(line["step_s"] for line in lines)
    return found | {f"cost/{name}": float(value) for name, value in cost.items()}


def compare(jobs: Sequence[Job], finished: Sequence[Job], baseline: str) -> dict[str, Any]:
    """Returns the content of results.json; variants without a finished run have no numbers."""
    by_variant = {variant: [job for job in finished if job.variant == variant] for variant in _variants(jobs)}
    numbers = {name: {job.seed: figures(job) for job in runs} for name, runs in by_variant.items()}
    rewards = {name: _pairs(runs) for name, runs in by_variant.items() if runs}
    found = {}
    for name, seeds in numbers.items():
        found[name] = {"seeds": seeds, "metrics": {metric: over_seeds(values) for metric, values in _by_metric(seeds)}}
        if name != baseline and baseline in rewards and name in rewards:
            found[name]["difference"] = _differences(seeds, numbers[baseline], rewards[name], rewards[baseline])
    return {
        "baseline": baseline,
        "interval": {
            "seeds": f"Student's t over seeds, {LEVEL:.0%}",
            "tasks": f"bootstrap of {SAMPLES} resamples of the held-out tasks, values averaged over seeds, {LEVEL:.0%}",
        },
        "unfinished": [str(job) for job in jobs if job not in finished],
        "variants": found,
    }


def over_seeds(values: Sequence[float]) -> dict[str, float | int | None]:
    """Returns the mean with its t interval; one value alone has none."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": count}
    half = float(scipy.stats.t.ppf(0.5 + LEVEL / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}


def _differences(
    seeds: dict[int, Figures],
    base_seeds: dict[int, Figures],
    pairs: dict[int, dict[str, dict[str, Any]]],
    base_pairs: dict[int, dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Returns variant minus baseline by metric, over the seeds that both have finished and the pairs that both have."""
    both = sorted(seeds.keys() & base_seeds.keys())
    if not both:
        return {}
    gaps = {seed: _subtracted(seeds[seed], base_seeds[seed]) for seed in both}
    over_tasks = _over_tasks([pairs[seed] for seed in both], [base_pairs[seed] for seed in both])
    return {
        metric: over_seeds(values) | over_tasks.get(metric, {"tasks_low": None, "tasks_high": None})
        for metric, values in _by_metric(gaps)
    }


def _over_tasks(own: list[dict[str, dict]], base: list[dict[str, dict]]) -> dict[str, dict[str, float]]:
    names = sorted(set.intersection(*(set(pairs) for pairs in (*own, *base))))
    if not names:
        return {}
    metrics = sorted(own[0][names[0]]["metrics"])

    def mean(seeds: list[dict[str, dict]]) -> np.ndarray:
        return np.mean([[[s[name]["metrics"][metric] for metric in metrics] for name in names] for s in seeds], axis=0)

    gaps = mean(own) - mean(base)
    bootstrap = TaskBootstrap([own[0][name]["task"] for name in names], samples=SAMPLES, seed=SEED)
    estimates = bootstrap.ratios(gaps, np.ones_like(gaps))
    return {
        metric: {"tasks_low": estimate.low, "tasks_high": estimate.high}
        for metric, estimate in zip(metrics, estimates, strict=True)
        if estimate is not None
    }


def _pairs(runs: Sequence[Job]) -> dict[int, dict[str, dict[str, Any]]]:
    """Returns seed -> pair_id -> the pair's row."""
    found = {}
    for job in runs:
        # Line by line as the file ends them: what is in a string may end lines for `splitlines`.
        with (job.folder / HELDOUT / "pairs.jsonl").open(encoding="utf-8") as lines:
            found[job.seed] = {row["pair_id"]: row for row in map(json.loads, lines)}
    return found


def _subtracted(own: Figures, base: Figures) -> Figures:
    return {name: value - base[name] for name, value in own.items() if name in base}


def _by_metric(seeds: dict[int, Figures]) -> list[tuple[str, list[float]]]:
    names = dict.fromkeys(name for found in seeds.values() for name in found)
    return [(name, [found[name] for found in seeds.values() if name in found]) for name in names]


def _of_commands(folder: Path) -> Figures:
    """Returns the scores of all commands; what several of them give is named apart by the command."""
    paths = sorted(folder.glob("command-*/results.json"), key=lambda path: int(path.parent.name.rpartition("-")[2]))
    by_command = {path.parent.name: _scores(json.loads(path.read_text())) for path in paths}
    times = collections.Counter(name for scores in by_command.values() for name in scores)
    return {
        name if times[name] == 1 else f"{command} {name}": value
        for command, scores in by_command.items()
        for name, value in scores.items()
    }


def _scores(content: dict[str, Any]) -> Figures:
    benchmark = content["benchmark"]
    return {f"{benchmark}/{score['suite']} pass@{score['k']}": score["value"] for score in content["scores"]}


def _variants(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(job.variant for job in jobs))


def folder_of(workdir: str) -> Path:
    """Returns a sweep's folder as an absolute path: its commands may run elsewhere."""
    return Path(workdir).expanduser().absolute()
