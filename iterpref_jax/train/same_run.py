"""What a resumed run must have in common with the run whose folder it continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iterpref_jax.errors import UserError

MICROBATCH, LENGTHS = "rows.rows_per_microbatch", "rows.lengths"
# Settings that a resumed run may change: what is written when, where things lie (their content is compared by itself),
# on how many devices and how many rows at a time, from what the backward pass starts and in which dtypes the state is
# kept (which change rounding only), and sections that training does not read.
MAY_CHANGE = (
    *("train.eval_every", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_best"),
    *("model.compute.remat", "optimizer.offload", "optimizer.state_dtype", "optimizer.master", "model.param_dtype"),
    *(MICROBATCH, LENGTHS, "train.accumulate_dtype", "model.path"),
    *("data.pipeline", "data.path", "reference", "mesh", "profile", "log", "hosts"),
    *("inject", "imports", "sandbox", "endpoint", "generate", "rounds", "evaluate", "build"),
    *("compile", "decode", "serve", "plan"),
)


def check_same_run(workdir: str, about: Mapping[str, Any], config: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Refuses to continue a folder whose run, `about` of its checkpoint, had another configuration, data or weights."""
    check_same_config(workdir, about["config"], config)
    _compare(workdir, "input", flat(about["fingerprint"]), flat(fingerprint))


def check_same_config(workdir: str, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses to continue a folder whose run has the configuration `stored`, where that differs in what must stay."""
    old, new = flat(dict(stored)), flat(dict(config))
    # Of a run from before steps could choose; before that, rows were never shortened.
    old.setdefault(LENGTHS, int(old.pop("rows.shorten", False)))
    for key in (MICROBATCH, LENGTHS) if new["objective.router_aux_loss_coef"] else ():
        if old[key] != new[key]:
            raise UserError(
                f"{workdir} holds a run with {key} = {old[key]}, now it is {new[key]}: the router's loss "
                "(objective.router_aux_loss_coef) is of one microbatch, whose size must stay; use the old value"
            )
    _compare(workdir, "configuration", old, new)


def _compare(workdir: str, what: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    differing = sorted(key for key in old | new if old.get(key) != new.get(key) and not may_change(key))
    if differing:
        listed = "\n  ".join(f"{key}: was {old.get(key)!r}, is {new.get(key)!r}" for key in differing)
        raise UserError(
            f"{workdir} holds a run with another {what}:\n  {listed}\nuse another --workdir, or the old values"
        )


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of this setting."""
    return any(key == name or key.startswith(name + ".") for name in MAY_CHANGE)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by their dotted names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}
