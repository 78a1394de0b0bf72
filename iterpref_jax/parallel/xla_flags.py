"""XLA's own flags: the one table of those that a run sets, for which accelerator, and why.

XLA reads them from environment variables, once, when the devices are opened. What the user has set there wins, flag by
flag; `compile.xla_flags = "none"` sets nothing. A flag that the installed XLA does not know would end the process with
"Unknown flag": `iterpref doctor` tries all of them in a process of its own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, MutableMapping

from iterpref_jax.errors import UserError

XLA_FLAGS, LIBTPU_INIT_ARGS = "XLA_FLAGS", "LIBTPU_INIT_ARGS"
# An accelerator is one of this machine, or one that is compiled for, where a package with its compiler is installed.
ACCELERATORS = {
    "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
    "tpu": ("libtpu",),
}
VARIABLES = {"gpu": XLA_FLAGS, "tpu": LIBTPU_INIT_ARGS}


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag `--name=value` of the compiler for one accelerator."""

    accelerator: str
    name: str
    value: str
    why: str

    @property
    def word(self) -> str:
        return f"--{self.name}={self.value}"


# Left out on purpose, because they are XLA's own defaults by now (jaxlib 0.12): asynchronous collectives and, on TPU,
# the latency-hiding scheduler and the fusion of all-gathers with the products around them.
FLAGS = (
    Flag(
        "gpu", "xla_gpu_enable_latency_hiding_scheduler", "true",
        "collectives start early and are waited for late, so that products run meanwhile; off by default",
    ),
    Flag(
        "gpu", "xla_gpu_enable_pipelined_all_gather", "true",
        "the weights of the next layer are gathered while this one is computed; off by default before jaxlib 0.12",
    ),
    Flag(
        "gpu", "xla_gpu_enable_pipelined_all_reduce", "true",
        "sums over replicas go on while the next layer is computed; off by default before jaxlib 0.12",
    ),
    Flag(
        "tpu", "xla_tpu_enable_data_parallel_all_reduce_opt", "true",
        "several slices: sums of gradients over the data centre's network run beside the backward pass",
    ),
    Flag(
        "tpu", "xla_tpu_data_parallel_opt_different_sized_ops", "true",
        "the same where a layer's gradients differ in size, as attention's and the MLP's do",
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """One flag as it stands: `origin` is "iterpref", or "environment" where the user has set it."""

    flag: Flag
    value: str
    origin: str


def check(choice: str) -> None:
    """Refuses a value of `compile.xla_flags` that is none."""
    if choice not in ("auto", "none"):
        raise UserError(
            f'compile.xla_flags must be "auto" (the table in parallel/xla_flags.py) or "none", not {choice!r}; flags '
            f"of your own go into the environment variables {XLA_FLAGS} and {LIBTPU_INIT_ARGS}"
        )


def apply(choice: str, environment: MutableMapping[str, str] = os.environ) -> list[Setting]:
    """Puts the flags of the installed accelerators into the environment, before devices are opened.

    Returns every flag of the table that has an accelerator here, as it now stands.
    """
    check(choice)
    if choice == "none":
        return []
    settings = []
    for flag in flags(installed()):
        variable = VARIABLES[flag.accelerator]
        given = _given(environment.get(variable, ""))
        if flag.name in given:
            settings.append(Setting(flag, given[flag.name], "environment"))
        else:
            environment[variable] = f"{environment.get(variable, '')} {flag.word}".strip()
            settings.append(Setting(flag, flag.value, "iterpref"))
    return settings


def flags(accelerators: tuple[str, ...]) -> tuple[Flag, ...]:
    """Returns the flags for these accelerators."""
    return tuple(flag for flag in FLAGS if flag.accelerator in accelerators)


def installed() -> tuple[str, ...]:
    """Returns the accelerators whose compiler is installed; JAX is not imported for it."""
    return tuple(
        accelerator
        for accelerator, packages in ACCELERATORS.items()
        if any(importlib.util.find_spec(package) for package in packages)
    )


def _given(text: str) -> Mapping[str, str]:
    """Returns the flags in an environment variable: `--name` alone means `--name=true`."""
    words = [word.lstrip("-").partition("=") for word in text.split()]
    return {name: value if equals else "true" for name, equals, value in words}
