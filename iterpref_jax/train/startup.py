"""From the start of a command to its first update: how long, and with what."""

from __future__ import annotations

import time

from iterpref_jax.train.tally import Tally

# Phase -> the part of the tally that it belongs to. From the first update on, the clock of the updates tells it.
_PARTS = {
    "open": "start",
    "weights": "start",
    "reference": "reference",
    "state": "start",
    "evaluation": "evaluation",
}


class Startup:
    """Names the phases as they end, in seconds; `began` is a `time.monotonic()`, by default that of now.

    `tally` is where all time of the command goes, that after the first update too.
    """

    def __init__(self, began: float | None = None):
        self.tally = Tally(began)
        self._last = self.tally.began
        self._phases: dict[str, float] = {}

    def ends(self, phase: str) -> None:
        """Says that everything since the phase before was `phase`."""
        now = time.monotonic()
        self._phases[phase] = now - self._last
        self._last = now
        if phase in _PARTS:
            self.tally.ends(_PARTS[phase])

    def seconds(self) -> dict[str, float]:
        """Returns the whole as `time_to_first_step_s`, and each phase as `PHASE_s`."""
        whole = {"time_to_first_step_s": self._last - self.tally.began}
        return whole | {f"{phase}_s": spent for phase, spent in self._phases.items()}

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {spent:.1f}" for phase, spent in self._phases.items())
        return f"first update after {self._last - self.tally.began:.1f} s ({phases})"
