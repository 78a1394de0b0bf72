"""`iterpref plan`: memory, collectives, FLOPs and time of a training step on accelerators that need not be there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from iterpref_jax import settings
from iterpref_jax.atomic import replace_text
from iterpref_jax.cli import options
from iterpref_jax.data.schema import Dataset, open_dataset
from iterpref_jax.errors import UserError
from iterpref_jax.models.adapters import check_targets
from iterpref_jax.parallel import xla_flags
from iterpref_jax.parallel.topology import open_topology
from iterpref_jax.plan import report
from iterpref_jax.plan.model_shape import model_shape
from iterpref_jax.plan.planning import Target, largest_rows, plan_step, whole_rows
from iterpref_jax.plan.search import search
from iterpref_jax.plan.settings import PlanSettings
from iterpref_jax.plan.workload import Workload, dataset_workload, made_workload
from iterpref_jax.progress import say

NO_DATASET = "(made pairs)"
DOES_NOT_FIT = 3


def main(argv: Sequence[str]) -> int:
    """Returns 0, or `DOES_NOT_FIT` where no step that was asked for fits the chips."""
    arguments = options.parser("plan", __doc__)
    options.add_config(arguments)
    arguments.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="v5e, v5p or v6e with the chips along each side, as in v6e:2x4; a100, h100, h100-pcie, h100-nvl, h200, "
        "h200-nvl or b200 with hosts x GPUs, as in h100:2x8",
    )
    arguments.add_argument("--slices", type=int, default=1, metavar="N", help="such TPU slices, joined by a network")
    arguments.add_argument("--pairs", type=int, metavar="N", help="pairs of an epoch (default: the dataset's)")
    arguments.add_argument("--largest", action="store_true", help="look for the largest microbatch that fits")
    arguments.add_argument(
        "--search", action="store_true", help="compare meshes, remat and microbatches; the best five are shown"
    )
    arguments.add_argument("--json", metavar="FILE", help="write the figures there as well")
    chosen, config = options.parse_with_config(arguments, argv)
    _check(chosen)
    # The flags that training would set: the program must be the same.
    xla_flags.apply(settings.read_section(config, "compile").xla_flags)
    # Nothing runs: devices of this machine are left alone, and none need be there.
    jax.config.update("jax_platforms", "cpu")
    target, load = _opened(config, chosen)
    if chosen.search:
        found = search(load, target)
        print(report.best(found, load, target), end="")
        content: Any = report.search_content(found, load, target)
        fits = bool(found)
    else:
        planned = plan_step(load, target)
        most = largest_rows(load, target, planned) if chosen.largest else None
        print(report.table(planned, load, target, most), end="")
        content = report.content(planned, load, target, most)
        fits = planned.fits or bool(most)
    if chosen.json:
        replace_text(Path(chosen.json), json.dumps(content, indent=2) + "\n")
        say(f"figures: {chosen.json}")
    return 0 if fits else DOES_NOT_FIT


def _check(chosen: Any) -> None:
    """Refuses before anything is compiled, which takes minutes."""
    if chosen.search and chosen.largest:
        raise UserError("--largest has no effect with --search, which tries numbers of rows by itself: leave one out")
    if chosen.json and not Path(chosen.json).absolute().parent.is_dir():
        raise UserError(f"--json={chosen.json}: the folder {Path(chosen.json).absolute().parent} does not exist")


def _opened(config: Any, chosen: Any) -> tuple[Target, Workload]:
    """Reads everything that is small, and checks it as `train` does."""
    about: PlanSettings = settings.read_section(config, "plan")
    about = about if chosen.pairs is None else dataclasses.replace(about, pairs=chosen.pairs)
    dataset: Dataset | None = open_dataset(config.data.path) if config.data.path else None
    if dataset is None:
        config.data.path = NO_DATASET
    run = settings.read_run(config)
    shape = model_shape(run.model, about.model, dataset)
    check_targets(shape, run.model.lora)
    target = Target(shape, open_topology(chosen.topology, chosen.slices), about.efficiency)
    whole = whole_rows(run, target)
    asked, rows = run.rows.rows_per_microbatch, whole.rows.rows_per_microbatch
    if asked not in (0, rows):
        say(f"rows.rows_per_microbatch = {asked} does not split evenly over these devices: planned with {rows}")
    if dataset is None:
        return target, made_workload(whole, about.pair, about.pairs)
    return target, dataset_workload(whole, dataset.split("train"), config.data.path, chosen.pairs)
