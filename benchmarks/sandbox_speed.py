"""Programs that a sandbox judges in a second, by tier, cold and warm, and by how many run at a time.

    python benchmarks/sandbox_speed.py
    python benchmarks/sandbox_speed.py --tiers bwrap --workers 1 --preload numpy --import numpy --runs 100

Every program is a right function of two lines with one check, so that nothing but the sandbox is measured; `--import`
puts imports before it. Tiers that do not hold on this machine are told on standard error and left out. Prints one JSON
line: runs a second and, of one run, the median and the 95th percentile of its milliseconds from call to verdict. The
first runs of every kind, which start interpreters, are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from typing import Any

from iterpref_jax.codeflow.sandbox import TIERS, Program, Sandbox, SandboxSettings, open_sandbox, tiers
from iterpref_jax.progress import say

LIMITS: dict[str, Any] = dict(wall_s=10.0, cpu_s=5, memory_mb=1024, output_kb=1024)
MODES = {"cold": False, "warm": True}


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiers", default=",".join(TIERS[:-1]))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--workers", default="1,2,4", help="programs that run at a time")
    parser.add_argument("--runs", type=int, default=300, help="of each kind")
    parser.add_argument("--preload", default="", help="modules for warm interpreters")
    parser.add_argument("--import", default="", dest="imported", help="modules that every program imports")
    return parser.parse_args()


def kinds(options: argparse.Namespace) -> Iterator[SandboxSettings]:
    """Yields what can be measured on this machine."""
    for tier in options.tiers.split(","):
        for mode in options.modes.split(","):
            warm = MODES[mode]
            if why := tiers.why_not(tier) or (warm and tiers.why_cold(tier)):
                say(f"{tier}, {mode}: left out: {why}")
                continue
            preload = tuple(filter(None, options.preload.split(","))) if warm else ()
            for workers in map(int, options.workers.split(",")):
                yield SandboxSettings(
                    tier=tier, allow_unsafe=False, workers=workers, warm=warm, preload=preload, python="", **LIMITS
                )


def measure(settings: SandboxSettings, options: argparse.Namespace) -> dict[str, Any]:
    code = "".join(f"import {name}\n" for name in filter(None, options.imported.split(",")))
    program = Program(
        code=code + "def add(a, b):\n    return a + b\n", tests="assert add(2, 3) == 5\n", setup="", style="script"
    )
    with open_sandbox(settings) as sandbox:
        run_all(sandbox, program, 4 * settings.workers)
        began = time.perf_counter()
        seconds = run_all(sandbox, program, options.runs)
        spent = time.perf_counter() - began
    return {
        "tier": settings.tier,
        "warm": settings.warm,
        "workers": settings.workers,
        "runs_per_second": round(options.runs / spent, 1),
        "ms_median": round(1e3 * statistics.median(seconds), 1),
        "ms_p95": round(1e3 * statistics.quantiles(seconds, n=20)[-1], 1),
    }


def run_all(sandbox: Sandbox, program: Program, count: int) -> list[float]:
    verdicts = sandbox.run_all([program] * count)
    for verdict in verdicts:
        assert verdict.passed, verdict
    return [verdict.seconds for verdict in verdicts]


def main() -> None:
    options = flags()
    about = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "is_root": os.getuid() == 0,
        "load_before": round(os.getloadavg()[0], 1),
        "imports": options.imported,
        "preload": options.preload,
        "runs": options.runs,
    }
    print(json.dumps(about | {"results": [measure(settings, options) for settings in kinds(options)]}))


if __name__ == "__main__":
    main()
