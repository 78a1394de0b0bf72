"""`iterpref plan` over layouts and topologies, one JSON line each: what a layout is worth before there is a chip.

    pip install '.[plan]'        TPUs; GPUs: '.[cuda]'
    python benchmarks/compiled.py              Qwen2.5-Coder-7B, 8 x v6e, pairs of 300 + 724 tokens in rows of 4,096
    python benchmarks/compiled.py --set rows.tokens=2048 train.global_batch=16 rows.rows_per_microbatch=16
    python benchmarks/compiled.py --topology v5p:4x4x4 h100:1x8 --layouts separate shared focal --largest

Every row is as long as `--set rows.tokens=N` says and holds what fits of pairs of the lengths in `plan.pair`; `focal`
is `shared` without what carries no loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from measured import ROOT, emit

from iterpref_jax import settings
from iterpref_jax.errors import UserError
from iterpref_jax.parallel import xla_flags
from iterpref_jax.parallel.topology import open_topology
from iterpref_jax.plan import report
from iterpref_jax.plan.model_shape import model_shape
from iterpref_jax.plan.planning import Target, largest_rows, plan_step, whole_rows
from iterpref_jax.plan.workload import made_workload

CONFIG = str(ROOT / "configs" / "target_rpo_qwen2_5_coder_7b.py")
LAYOUTS = {"separate": ("separate", False), "shared": ("shared", False), "focal": ("shared", True)}


def flags(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", nargs="+", default=["v6e:2x4"], help="such as v5e:4x4, v5p:2x2x1, h100:1x8")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["separate"])
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="config fields to change")
    parser.add_argument("--largest", action="store_true", help="look for the most rows a microbatch")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, topology: str, layout: str) -> dict[str, Any]:
    """Plans one case and returns its figures."""
    name, truncate = LAYOUTS[layout]
    values = {"data.path": "none", "rows.layout": name, "rows.truncate": truncate, "rows.lengths": 0}
    overrides = [f"{key}={value}" for key, value in values.items()] + options.set
    config = settings.load_config(options.config, overrides)
    # The flags that training would set: the program must be the same.
    xla_flags.apply(settings.read_section(config, "compile").xla_flags)
    about, run = settings.read_section(config, "plan"), settings.read_run(config)
    target = Target(model_shape(run.model, about.model, None), open_topology(topology), about.efficiency)
    load = made_workload(whole_rows(run, target), about.pair, about.pairs)
    planned = plan_step(load, target)
    most = largest_rows(load, target, planned) if options.largest else None
    return {"layout": layout, **report.content(planned, load, target, most)}


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for topology in options.topology:
        for layout in options.layouts:
            yield measure(options, topology, layout)


def main() -> None:
    options = flags()
    # The machine has none of these devices; without this, JAX would look for them.
    jax.config.update("jax_platforms", "cpu")
    for line in cases(options):
        emit(**line | {"config": Path(options.config).name, "jax": jax.__version__})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"compiled: {error}")
