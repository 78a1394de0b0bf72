"""What a run tells of itself beside its metrics: its goodput, and all hosts side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iterpref_jax.parallel import distributed
from iterpref_jax.progress import say
from iterpref_jax.train.flight import Clock, Lap
from iterpref_jax.train.goodput import Ledger
from iterpref_jax.train.metrics import MetricsLog, NoLog
from iterpref_jax.train.pace import laggard, side_by_side
from iterpref_jax.train.wandb_log import Log, LogSettings, sent_to_wandb


def open_log(settings: LogSettings, workdir: Path, config: dict[str, Any], *, resume_step: int) -> Log:
    """Returns where this process's numbers go: those of process 0 to the run's folder, the others' nowhere."""
    if not distributed.is_main():
        return NoLog()
    return sent_to_wandb(MetricsLog(workdir, resume_step=resume_step), settings, workdir, config)


class Watch:
    """Keeps time and ledger of the updates; tells where updates stand still anyway."""

    def __init__(self, clock: Clock, ledger: Ledger, log: Log):
        self.clock, self._ledger, self._log = clock, ledger, log
        self._said: set[int] = set()

    def lap(self, update: int) -> Lap:
        """Ends an update."""
        self._ledger.reached(update)
        return self.clock.lap()

    def tell(self, done: int) -> None:
        """Writes the lines `goodput` and `hosts` after update number `done`; every host calls this after the same one.

        The first time that the others wait for a host, a person is told.
        """
        hosts = side_by_side(distributed.gather("pace", self.clock.pace.take()))
        self._log.write(done, "goodput", self._ledger.shares())
        self._log.write(done, "hosts", hosts)
        lags = laggard(hosts)
        if lags and lags[0] not in self._said:
            self._said.add(lags[0])
            say(f"the others wait for {distributed.described(lags[0])}, which {lags[1]}")
