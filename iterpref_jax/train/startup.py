"""From the start of a command to its first update: how long, and with what."""

from __future__ import annotations

import time


class Startup:
    """Names the phases as they end, in seconds; `began` is a `time.monotonic()`, by default that of now."""

    def __init__(self, began: float | None = None):
        self._began = self._last = time.monotonic() if began is None else began
        self._phases: dict[str, float] = {}

    def ends(self, phase: str) -> None:
        """Says that everything since the phase before was `phase`."""
        now = time.monotonic()
        self._phases[phase] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Returns the whole as `time_to_first_step_s`, and each phase as `PHASE_s`."""
        whole = {"time_to_first_step_s": self._last - self._began}
        return whole | {f"{phase}_s": spent for phase, spent in self._phases.items()}

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {spent:.1f}" for phase, spent in self._phases.items())
        return f"first update after {self._last - self._began:.1f} s ({phases})"
