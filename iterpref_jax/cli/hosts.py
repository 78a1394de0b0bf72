"""The flags of one process among several, and what such processes do together."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from iterpref_jax import settings
from iterpref_jax.parallel.host_settings import DistributedSettings
from iterpref_jax.parallel.liveness import together
from iterpref_jax.train import alike
from iterpref_jax.train.saved import steps_in


def add_flags(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags of one process among several; a cluster that JAX knows needs none of them."""
    several = arguments.add_argument_group("several processes (none of these on TPU, Slurm, Open MPI, Kubernetes)")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is, and a free port there")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are; 1 = run alone, look for none")
    several.add_argument("--process", type=int, metavar="I", help="which one this is, 0 to N - 1")


def read(chosen: argparse.Namespace, config: Any) -> DistributedSettings:
    """Returns what the flags of `add_flags` and the config say about the processes."""
    return DistributedSettings(
        coordinator=chosen.coordinator,
        processes=chosen.processes,
        process=chosen.process,
        hosts=settings.read_section(config, "hosts"),
    )


def without_flags(argv: Sequence[str]) -> list[str]:
    """Returns a command's words without the flags of `add_flags`: what all processes have in common."""
    flags = ("--coordinator", "--processes", "--process")
    return [
        word
        for before, word in zip(["", *argv], argv, strict=False)
        if word.partition("=")[0] not in flags and before not in flags
    ]


def command(name: str, argv: Sequence[str]) -> str:
    """Returns what to type to go on."""
    return f"iterpref {name} {shlex.join(without_flags(argv))}"


@contextlib.contextmanager
def joined(name: str, argv: Sequence[str], chosen: argparse.Namespace, config: Any) -> Iterator[None]:
    """Runs the body in all processes of a command together: started alike, ended together."""

    def advice() -> str:
        saved = f"{_saved(chosen.workdir)}; " if chosen.workdir else ""
        return f"{saved}start all processes again to go on: {command(name, argv)}"

    with together(read(chosen, config), advice):
        alike.check_program(name, settings.to_json(config))
        yield


def _saved(workdir: str) -> str:
    folder = epath.Path(workdir) / "checkpoints"
    steps = steps_in(folder)
    return f"Newest whole checkpoint: {folder / str(steps[-1])}" if steps else f"No checkpoint yet in {folder}"
