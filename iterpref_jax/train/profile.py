"""An XProf trace of a few updates: what the devices and the host did, and when."""

from __future__ import annotations

import dataclasses
import re

import jax
from etils import epath

from iterpref_jax.errors import UserError
from iterpref_jax.progress import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """Which updates are traced: "10:13" is 10, 11 and 12; empty = none."""

    steps: str

    def __post_init__(self):
        if self.steps and not (re.fullmatch(r"\d+:\d+", self.steps) and self.updates and self.updates.start):
            raise UserError(
                f"profile.steps must be empty or START:STOP with 1 <= START < STOP (10:13 is updates 10, 11 and 12), "
                f"not {self.steps!r}"
            )

    @property
    def updates(self) -> range:
        """The numbers of the updates, from 1."""
        start, stop = map(int, self.steps.split(":")) if self.steps else (0, 0)
        return range(start, stop)

    def check(self, steps: int) -> None:
        """Raises UserError if a run of so many updates does not reach them all."""
        if self.steps and self.updates[-1] > steps:
            raise UserError(f"profile.steps = {self.steps}: the run has {steps} updates")


class Profiler:
    """Starts and stops the trace of `updates` into a folder; a resumed run traces those that it still makes."""

    def __init__(self, updates: range, folder: epath.Path):
        self._updates, self._folder, self._running = updates, folder, False

    def begins_at(self, update: int) -> bool:
        """Whether the trace starts with this update: what is still computed before must be waited for."""
        return update in self._updates and not self._running

    def ends_at(self, update: int) -> bool:
        """Whether the trace ends with this update."""
        return self._running and update == self._updates[-1]

    def begin(self) -> None:
        """Starts the trace."""
        jax.profiler.start_trace(str(self._folder))
        self._running = True

    def close(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            say(f"profile: {self._folder} (look at it with: xprof --logdir {self._folder})")
