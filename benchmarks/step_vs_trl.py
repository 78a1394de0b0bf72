"""Pairs a second and peak memory of the whole DPO update: ours in several layouts, and TRL's, on the same real pairs.

    python benchmarks/step_vs_trl.py --model 98m --data trajectories.jsonl --tokenizer Qwen/Qwen2.5-Coder-7B
    python benchmarks/step_vs_trl.py --model 1.5b --device gpu --tokens 4096 --config.rows.rows_per_microbatch=4 \
        --pairs-per-step 64 --pairs 128 --trl-batch 4 8 --trl-attention flash_attention_2 --trl-liger ...

Both start from the same random weights, train on the same token ids in the same order, in the same precision, with the
same AdamW. Every variant runs in a process of its own, and they take turns. Ours:

    separate         DPO     [prompt | chosen] [prompt | rejected]
    shared           DPO     the prompt and the completions' common prefix once: TRL's very objective
    target_separate  Target-DPO as `separate`: all of y-, though few of its tokens carry loss
    focal            Target-DPO shared, y- truncated after its last weighted token
    tree             Target-DPO all pairs of one history in one tree, where there are several (--choose all)

All score the targets only and read the reference from a cache; its pass is measured apart. TRL's:

    trl                      the reference model runs in the step: a ratio counts our reference pass
    trl_precomputed          `precompute_ref_log_probs`: a ratio is of training alone on both sides
    trl_labelled, trl_precomputed_labelled    on a CPU TRL's head scores prompts and padding too, on a GPU labelled
                             positions only; these do on a CPU what it does on a GPU

`trl/2` works on 2 pairs at a time; ratios are to the fastest. A warm-up step, which compiles, is told apart.

Checked on the way: both sides see equally many tokens, and step by step the same losses wherever the objective is the
same. Prints a JSON line a variant and one of ratios. Measure on an idle machine: `load_average`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measured
import real_pairs

from iterpref_jax.cli import options as words
from iterpref_jax.data import schema
from iterpref_jax.errors import UserError

BETA = 0.1
# Variant -> recipe, layout, truncation.
OURS = {
    "separate": ("dpo", "separate", False),
    "shared": ("dpo", "shared", False),
    "target_separate": ("target_dpo", "separate", False),
    "focal": ("target_dpo", "shared", True),
    "tree": ("target_dpo", "tree", True),
}
# Variant -> whether the reference is precomputed, and whether the head scores labelled positions only on a CPU too.
TRL = {
    "trl": (False, False),
    "trl_precomputed": (True, False),
    "trl_labelled": (False, True),
    "trl_precomputed_labelled": (True, True),
}
# What a run says of itself once.
ABOUT = ("mfu", "executed_mfu", "row_tokens", "parameters", "device_kind", "versions")
# How far the losses of one step may lie apart.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    real_pairs.add_flags(arguments)
    measured.add_flags(arguments)
    arguments.add_argument("--pairs", type=int, default=24, help="that are timed; one step more is warm-up")
    arguments.add_argument("--learning-rate", type=float, default=1e-5)
    arguments.add_argument("--only", default="", help="variants, such as separate,focal,trl")
    arguments.add_argument("--repeats", type=int, default=1, help="times that every variant has its turn")
    arguments.add_argument("--trl-python", default=sys.executable, help="of the environment that has torch and TRL")
    arguments.add_argument("--trl-batch", type=int, nargs="+", default=[1], help="pairs that TRL works on at a time")
    arguments.add_argument("--trl-attention", default="sdpa", help="attn_implementation of transformers")
    arguments.add_argument("--trl-liger", action="store_true", help="Liger's layer kernels")
    arguments.add_argument("--trl-checkpointing", action="store_true", help="gradient checkpointing, as by default")
    arguments.add_argument(
        "--trl-reference-batch", type=int, default=0, help="pairs as it precomputes; 0: as it trains"
    )
    options, overrides = words.parse(arguments, argv)
    uneven = [count for count in options.trl_batch if options.pairs_per_step % count]
    if options.pairs < 1 or options.pairs % options.pairs_per_step or uneven:
        raise UserError(
            f"--pairs {options.pairs} must be a multiple of --pairs-per-step {options.pairs_per_step}, and that one of "
            f"every --trl-batch {options.trl_batch}"
        )
    if {kind(name) for name in options.only.split(",")} & (TRL.keys() - rivals(options.device)):
        raise UserError(f"--only {options.only}: on a GPU TRL's head scores labelled positions only anyway")
    return options, overrides


class Variants:
    """What is compared: the names of the variants, and how each of them is run once."""

    def __init__(self, options: argparse.Namespace, overrides: list[str], folder: Path):
        self.options, self.overrides, self.folder = options, overrides, folder
        self.steps = 1 + options.pairs // options.pairs_per_step
        self.model, self.order = folder / "model", folder / "pairs.jsonl"
        dataset = real_pairs.open_pairs(options, overrides, folder / "built")
        records = real_pairs.draw(dataset, self.steps * options.pairs_per_step, options.seed)
        self.data = real_pairs.subset(dataset, records, folder / "data")
        self._runs = 0

    def names(self) -> list[str]:
        """Returns the variants of --only, or all that differ: trees need pairs with one prompt and one chosen side."""
        kinds = rivals(self.options.device)
        theirs = [f"{name}/{batch}" for name in kinds for batch in self.options.trl_batch]
        joined = schema.open_dataset(self.data).split("train").index.previous_len >= 0
        useful = [name for name in OURS if name != "tree" or joined.any()]
        wanted = self.options.only.split(",") if self.options.only else [*useful, *kinds]
        found = [name for name in [*OURS, *theirs] if name in wanted or kind(name) in wanted]
        unknown = set(wanted) - {*found, *map(kind, found)}
        if unknown:
            raise UserError(f"--only: no variant {', '.join(sorted(unknown))}; there are {', '.join([*OURS, *theirs])}")
        return found

    def prepare(self) -> None:
        """Writes the weights, and the pairs in the order of our steps."""
        spec = {"model": str(self.model), "pairs": str(self.order), "workdir": self._workdir()}
        start = measured.run_overrides(self.options, self.data, self.steps, OURS["separate"])
        spec["overrides"] = start + measured.random_weights(self.options)
        found = self._child(sys.executable, "our_step.py", spec)
        if "error" in found:
            sys.exit(f"the weights could not be made: {found['error']}")

    def run(self, name: str) -> dict[str, Any]:
        """Runs one variant once."""
        if kind(name) in TRL:
            return self._child(self.options.trl_python, "trl_step.py", self._trl_spec(name))
        overrides = [
            *measured.run_overrides(self.options, self.data, self.steps, OURS[name]),
            *(f"model.path={self.model}", f"objective.link.beta={BETA}"),
            f"optimizer.learning_rate={self.options.learning_rate}",
            *self.overrides,
        ]
        return self._child(sys.executable, "our_step.py", {"overrides": overrides, "workdir": self._workdir()})

    def _trl_spec(self, name: str) -> dict[str, Any]:
        options = self.options
        numbers = ("pairs_per_step", "learning_rate", "device", "param_dtype")
        return {name: getattr(options, name) for name in numbers} | {
            "model": str(self.model),
            "pairs": str(self.order),
            "tokenizer": str(self.data / "tokenizer"),
            "workdir": self._workdir(),
            "beta": BETA,
            "precompute": TRL[kind(name)][0],
            "labelled": TRL[kind(name)][1],
            "reference_batch": options.trl_reference_batch or int(name.partition("/")[2]),
            "batch": int(name.partition("/")[2]),
            "attention": options.trl_attention,
            "liger": options.trl_liger,
            "checkpointing": options.trl_checkpointing,
            "compute_dtype": measured.compute_dtype(options),
        }

    def _child(self, python: str, script: str, spec: dict[str, Any]) -> dict[str, Any]:
        return measured.run_child(python, script, spec, timeout=self.options.timeout, cpu=self.options.device == "cpu")

    def _workdir(self) -> str:
        self._runs += 1
        return str(self.folder / f"run{self._runs}")


def rivals(device: str) -> list[str]:
    """Returns the kinds of TRL's variants that differ on this device."""
    return [name for name, (_, labelled) in TRL.items() if not labelled or device == "cpu"]


def kind(name: str) -> str:
    """`trl/2` is of kind `trl`."""
    return name.partition("/")[0]


def recipe_of(name: str) -> str:
    return "dpo" if kind(name) in TRL else OURS[name][0]


def line(name: str, runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the JSON line of a variant from its runs; speeds are medians over the runs."""
    about = {"variant": name, "recipe": recipe_of(name), "runs": len(runs)}
    loads = {"load_average": [run["load_average"] for run in runs]}
    if errors := [run["error"] for run in runs if "error" in run]:
        return about | {"error": errors[0]} | loads
    train_s = statistics.median(sum(run["step_s"][1:]) for run in runs) / options.pairs
    reference_s = statistics.median(run["reference_s_per_pair"] for run in runs)
    last = runs[-1]
    return {
        **about,
        "seconds_per_step": round(train_s * options.pairs_per_step, 4),
        "pairs_per_second": round(1 / train_s, 4),
        "reference_s_per_pair": round(reference_s, 4),
        "pairs_per_second_with_reference": round(1 / (train_s + reference_s), 4),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "start_host_bytes": last["start_host_bytes"],
        "tokens": sum(last["tokens"][1:]),
        "columns": sum(last["columns"][1:]),
        **{name: sum(last[name][1:]) for name in ("targets", "flops", "executed_flops") if name in last},
        **{name: last[name] for name in ABOUT if name in last},
        "first_step_s": [round(run["step_s"][0], 2) for run in runs],
        "step_s": [round(seconds, 4) for seconds in last["step_s"]],
        "pairs_per_second_of_runs": [round(options.pairs / sum(run["step_s"][1:]), 4) for run in runs],
        "losses": [round(loss, 6) for loss in last["losses"]],
        **loads,
    }


def ratios(lines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns, for each variant of ours, its speed and memory against the fastest TRL, and its speed against two
    sequences a pair of DPO and of Target-DPO.
    """
    ours = {name: found for name, found in lines.items() if name in OURS}
    found: dict[str, Any] = {name: {"recipe": recipe_of(name)} for name in ours}
    for rival, (precomputed, _) in TRL.items():
        speed = "pairs_per_second" if precomputed else "pairs_per_second_with_reference"
        theirs = [line for name, line in lines.items() if kind(name) == rival]
        if not theirs:
            continue
        best = max(theirs, key=lambda line: line[speed])
        for name, mine in ours.items():
            found[name][f"speed_vs_{best['variant']}"] = round(mine[speed] / best[speed], 2)
            found[name][f"memory_vs_{best['variant']}"] = round(mine["peak_bytes"] / best["peak_bytes"], 2)
    for base in ours.keys() & {"separate", "target_separate"}:
        for name, mine in ours.items():
            found[name][f"speed_vs_{base}"] = round(mine["pairs_per_second"] / ours[base]["pairs_per_second"], 2)
    return found


def disagreements(runs: dict[str, dict[str, Any]], tolerance: float) -> list[str]:
    """Returns where runs that must agree do not: tokens of whole pairs, and losses of one objective on equal steps."""
    found, first = [], {}
    for name, run in runs.items():
        whole = kind(name) in TRL or OURS[name][1:] == ("separate", False)
        if whole and run["tokens"] != first.setdefault("tokens", run["tokens"]):
            found.append(f"{name} saw {run['tokens']} tokens a step, another {first['tokens']}")
        # Trees keep the pairs of a task together, so their steps may hold other pairs.
        if "pairs" in run and run["pairs"] != first.setdefault("pairs", run["pairs"]):
            continue
        losses = first.setdefault(recipe_of(name), run["losses"])
        # NaN is far from everything.
        if not all(abs(one - other) < tolerance for one, other in zip(run["losses"], losses, strict=True)):
            found.append(f"losses of {name}, {run['losses']}, are not {losses}")
    return found


def main(argv: Sequence[str]) -> int:
    options, overrides = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        variants = Variants(options, overrides, Path(folder))
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants.names()}
        lines: dict[str, dict[str, Any]] = {}
        variants.prepare()
        for repeat in range(options.repeats):
            for name in runs:
                runs[name].append(variants.run(name))
                measured.note(f"{name}, run {repeat + 1} of {options.repeats}")
                if repeat + 1 == options.repeats:
                    # At once, so that a run that is cut off has not measured in vain.
                    lines[name] = line(name, runs[name], options)
                    measured.emit(**lines[name])
    good = {name: found for name, found in lines.items() if "error" not in found}
    failed = disagreements({name: runs[name][-1] for name in good}, LOSS_TOLERANCE[measured.compute_dtype(options)])
    about = {name: value for name, value in vars(options).items() if name not in ("data", "tokenizer", "trl_python")}
    measured.emit(ratios=ratios(good), disagreements=failed, overrides=overrides, **about, **measured.machine())
    return int(bool(failed) or len(good) < len(lines))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"step_vs_trl: {error}")
