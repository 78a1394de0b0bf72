"""What a sweep file holds: a base config, named variants of it, seeds, and what is measured beside held-out pairs."""

from __future__ import annotations

import dataclasses
import re

from iterpref_jax.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A named change of the base config: `KEY=VALUE` words as on the command line, and `input=NAME` for other data."""

    name: str
    overrides: tuple[str, ...]

    def __post_init__(self):
        if not NAME.fullmatch(self.name):
            raise UserError(f"a variant is named {self.name!r}; use letters, digits and _ . = + - (it names a folder)")
        for word in self.overrides:
            if word.partition("=")[0] in ("seed", "build.seed", "build.eval_fraction"):
                raise UserError(
                    f"variant {self.name!r} sets {word}: seeds are the sweep's own (`seeds`), and all variants hold "
                    "the same tasks out"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """`config` is a file (and :ARG) beside the sweep's; variants are compared with the first one by default.

    `overrides` are for all variants. `commands` run after each run, as `iterpref` words in which {run}, {config} and
    {out} stand for the run's folder, the base config and a folder of their own; figures of OUT/results.json (as
    `iterpref eval` writes it) join the table.
    """

    config: str
    overrides: tuple[str, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    commands: tuple[str, ...]

    def __post_init__(self):
        names = [variant.name for variant in self.variants]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(f"a sweep needs at least two variants with different names, got {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"a sweep needs different seeds of at least 0, got {self.seeds}")
