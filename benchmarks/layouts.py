"""What each layout costs by prompt length: tokens, columns, targets and FLOPs of a dataset, time and memory of a step.

    python benchmarks/layouts.py --data DATASET --model 98m --table
    python benchmarks/layouts.py --data histories.jsonl.gz --tokenizer FOLDER --choose all --recipe target_rpo

Tokens are counted over all pairs of a bucket (whole steps of them), columns as they are packed into rows. Time and
peak memory are measured on `--pairs` of them, drawn at random, each layout in a process of its own after a step of
warm-up. The link needs no reference, so that training alone is measured; it changes no cost. A JSON line a bucket and
layout. Measure on an idle machine: `load_average`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import measured
import numpy as np
import our_step
import real_pairs

from iterpref_jax.cli import options as words
from iterpref_jax.data.layout import LAYOUTS
from iterpref_jax.data.schema import Dataset
from iterpref_jax.errors import UserError
from iterpref_jax.objectives.weights import find_recipe

REFERENCE_FREE = "objective.link.name=cpo"
COLUMNS = ("bucket", "layout", "pairs", "tokens", "columns", "targets", "flops", "seconds_per_step", "peak_bytes")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    real_pairs.add_flags(arguments)
    measured.add_flags(arguments)
    arguments.add_argument("--recipe", default="target_dpo", help="of configs/base.py's objective")
    arguments.add_argument("--buckets", type=int, nargs="+", default=[0, 128, 256, 512], help="least prompt tokens")
    arguments.add_argument("--only", nargs="+", default=[], help="layouts, such as separate shared+truncate")
    arguments.add_argument("--pairs", type=int, default=16, help="a bucket that are timed; 0: nothing is timed")
    arguments.add_argument("--repeats", type=int, default=1, help="times that every layout has its turn")
    arguments.add_argument("--table", action="store_true", help="a table as well, at the end")
    options, overrides = words.parse(arguments, argv)
    if 0 < options.pairs < options.pairs_per_step:
        raise UserError(f"--pairs {options.pairs} is less than one of --pairs-per-step {options.pairs_per_step}")
    find_recipe(options.recipe)
    return options, overrides


def buckets(dataset: Dataset, edges: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Yields the name and the records of every bucket of prompt lengths."""
    lengths = dataset.split("train").index.prompt_len
    for low, high in itertools.pairwise([*sorted(edges), np.inf]):
        records = np.flatnonzero((lengths >= low) & (lengths < high))
        yield f"{low}-{high - 1}" if high < np.inf else f"{low}-", records.tolist()


def bucket_lines(
    name: str, records: list[int], dataset: Dataset, options: argparse.Namespace, overrides: list[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """Yields the line of every layout of one bucket; none where the bucket does not fill a step."""
    per_step = options.pairs_per_step
    whole = len(records) // per_step
    if not whole:
        measured.note(f"prompts of {name} tokens: {len(records)} pairs are less than a step, left out")
        return
    counted = real_pairs.subset(dataset, records, folder / "all")
    timed = min(1 + options.pairs // per_step, whole)
    drawn = real_pairs.draw(dataset, timed * per_step, options.seed, records)
    sample = real_pairs.subset(dataset, drawn, folder / "sample")
    variants = wanted(options.only)
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = {variant: [] for variant in variants}
    for repeat, variant in itertools.product(range(options.repeats if timed > 1 else 0), variants):
        spec = our_spec(options, sample, timed, variant, overrides, folder / f"run{repeat}-{variant}")
        runs[variant].append(
            measured.run_child(
                sys.executable, "our_step.py", spec, timeout=options.timeout, cpu=options.device == "cpu"
            )
        )
        measured.note(f"prompts of {name} tokens, {label(variant)}, run {repeat + 1} of {options.repeats}")
    for variant in variants:
        work = our_step.count(our_spec(options, counted, whole, variant, overrides, folder / f"count-{variant}"))
        sums = {key: sum(work[key]) for key in ("tokens", "columns", "targets", "flops")}
        about = {"bucket": name, "layout": label(variant), "recipe": options.recipe, "pairs": whole * per_step}
        yield about | sums | {"row_tokens": work["row_tokens"]} | times(runs[variant])


def wanted(labels: Sequence[str]) -> list[tuple[str, bool]]:
    """Returns the layouts of these labels, without and with truncation; all of them for no label."""
    known = {label(variant): variant for variant in itertools.product(LAYOUTS, (False, True))}
    if unknown := set(labels) - known.keys():
        raise UserError(f"--only: no layout {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [variant for name, variant in known.items() if not labels or name in labels]


def our_spec(
    options: argparse.Namespace, data: Path, steps: int, variant: tuple[str, bool], overrides: list[str], workdir: Path
) -> dict[str, Any]:
    """Returns what our_step.py reads."""
    values = measured.run_overrides(options, data, steps, (options.recipe, *variant))
    every = [*values, *measured.random_weights(options), *objective(options.recipe), *overrides]
    return {"overrides": every, "workdir": str(workdir)}


def objective(recipe: str) -> list[str]:
    """Returns the overrides of a recipe that needs no reference."""
    found = find_recipe(recipe)
    return ["objective.alpha=1.0"] * found.nll + [REFERENCE_FREE] * found.has_preference


def label(variant: tuple[str, bool]) -> str:
    """("shared", True) is `shared+truncate`."""
    return variant[0] + "+truncate" * variant[1]


def times(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what was measured of one layout: medians over the runs, without their first steps."""
    if not runs:
        return {}
    if errors := [run["error"] for run in runs if "error" in run]:
        return {"error": errors[0]}
    return {
        "timed_steps": len(runs[0]["step_s"]) - 1,
        "seconds_per_step": round(statistics.median(statistics.mean(run["step_s"][1:]) for run in runs), 4),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "timed_tokens": sum(runs[0]["tokens"][1:]),
        "timed_columns": sum(runs[0]["columns"][1:]),
        "first_step_s": round(runs[0]["step_s"][0], 2),
        "load_average": [run["load_average"] for run in runs],
        **{name: runs[0][name] for name in ("mfu", "device_kind", "versions")},
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Returns the lines in columns."""
    rows = [COLUMNS, *([_short(line.get(name, "")) for name in COLUMNS] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str]) -> int:
    options, overrides = parse(argv)
    # Counting needs no device; the processes that measure must find it free.
    jax.config.update("jax_platforms", "cpu")
    shown = ("model", "device", "param_dtype", "pairs_per_step", "seed")
    about = {name: getattr(options, name) for name in shown} | {"overrides": overrides} | measured.machine()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = real_pairs.open_pairs(options, overrides, Path(folder) / "built")
        for name, records in buckets(dataset, options.buckets):
            for found in bucket_lines(name, records, dataset, options, overrides, Path(folder) / name):
                lines.append(found)
                measured.emit(**found, **about)
    if options.table:
        print(table(lines))
    return int(any("error" in found for found in lines))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"layouts: {error}")
