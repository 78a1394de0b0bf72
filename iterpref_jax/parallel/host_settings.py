"""How processes find each other and how long they wait; read without JAX, which is started by what is said here."""

from __future__ import annotations

import dataclasses
import re

from iterpref_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsSettings:
    """How long processes wait for each other to come, and for a sign of life."""

    start_timeout_s: int
    vanished_after_s: int

    def __post_init__(self):
        if self.start_timeout_s < 1:
            raise UserError(f"hosts.start_timeout_s must be at least 1, got {self.start_timeout_s}")
        if self.vanished_after_s < 5:
            raise UserError(f"hosts.vanished_after_s must be at least 5, got {self.vanished_after_s}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedSettings:
    """Where the coordinator (process 0) is, how many processes there are, which one this is; None: the cluster says."""

    coordinator: str | None
    processes: int | None
    process: int | None
    hosts: HostsSettings

    def __post_init__(self):
        if self.processes == 1 and self.coordinator is None and self.process in (None, 0):
            return
        given = {"--coordinator": self.coordinator, "--processes": self.processes, "--process": self.process}
        missing = [flag for flag, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise UserError(
                f"{', '.join(missing)} missing: give all of {', '.join(given)}, or none where the cluster says them "
                "(TPU, Slurm, Open MPI, Kubernetes); --processes=1 alone never looks for others"
            )
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise UserError(f"--coordinator={self.coordinator}: expected HOST:PORT of process 0, such as 10.0.0.1:8476")
        if self.processes is not None and self.process is not None and not 0 <= self.process < self.processes:
            raise UserError(
                f"--process={self.process}: with --processes={self.processes} it is 0 to {self.processes - 1}"
            )
