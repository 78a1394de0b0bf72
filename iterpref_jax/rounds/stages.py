"""Steps of a round as processes of their own, each of which is done once; memory is given back between them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_text
from iterpref_jax.child import bound
from iterpref_jax.errors import GO_ON, UserError
from iterpref_jax.progress import say

# The sections and settings that decide what a stage makes; an export reads the run that was trained.
_READS = {
    "generate": ("model.path", "generate", "build", "endpoint", "sandbox", "decode.context", "rounds.serve"),
    "build": ("build",),
    "train": ("seed", "model", "rows", "objective", "optimizer", "train", "reference"),
    "export": (),
}
# Of them, what changes nothing of it: how fast and how far all may go.
_FREE = (
    *("sandbox.workers", "build.workers", "endpoint.requests_per_minute", "endpoint.tokens_per_minute"),
    *("endpoint.budget_usd", "endpoint.max_calls", "endpoint.max_total_tokens"),
)

# How commands end that were told to stop and keep what they have.
_STOPPED = (GO_ON, 130)


class Stages:
    """The stages of one round: `FOLDER/done/NAME.json` holds the words and settings of each that has ended well.

    `settings` are the values of all settings by their dotted names. A config's name and words that override it are
    not compared: the values that come of them are.
    """

    def __init__(self, folder: Path, title: str, settings: Mapping[str, Any]):
        self._folder, self._title, self._settings = folder, title, settings

    def is_done(self, name: str, command: Sequence[str]) -> bool:
        """Whether a stage has ended before; raises UserError if that was a command that makes something else."""
        marker = self._marker(name)
        if not marker.exists():
            return False
        before, now = json.loads(marker.read_text(encoding="utf-8")), self._known_as(name, command)
        if isinstance(before, list):
            # Markers held words alone before they held settings.
            before = {"words": _without_settings(before), "settings": now["settings"]}
        changed = [
            f"{key}: {_shown(old)} before, {_shown(new)} now"
            for key in before["settings"] | now["settings"]
            if (old := before["settings"].get(key)) != (new := now["settings"].get(key))
        ]
        old_words, new_words = before["words"], now["words"]
        changed += [shlex.quote(word) for word in old_words + new_words if (word in old_words) != (word in new_words)]
        if changed:
            raise UserError(
                f"{marker}: the stage {name} was done otherwise ({'; '.join(changed)}); take that back, delete this "
                "file and what the stage wrote, or work in another folder"
            )
        return True

    def run(self, name: str, command: Sequence[str], result: Path) -> None:
        """Runs a stage unless it is done; it must leave `result`.

        Raises:
            UserError: it failed; what it said stands above.
            KeyboardInterrupt: it was stopped and keeps what it has.
        """
        if self.is_done(name, command):
            return
        say(f"{self._title}: {name}: {shlex.join(command)}")
        status = _wait(command)
        if status in _STOPPED:
            raise KeyboardInterrupt
        if status:
            raise UserError(
                f"{self._title}: {name} ended with status {status}; mend that and run the same command again"
            )
        if not result.exists():
            raise UserError(f"{self._title}: {name} ended well without {result}; run the same command again")
        marker = self._marker(name)
        marker.parent.mkdir(parents=True, exist_ok=True)
        replace_text(marker, json.dumps(self._known_as(name, command), indent=1) + "\n")

    def _known_as(self, name: str, command: Sequence[str]) -> dict[str, Any]:
        read = {
            key: value
            for key, value in self._settings.items()
            if key not in _FREE and any(f"{key}.".startswith(f"{section}.") for section in _READS[name])
        }
        return {"words": _without_settings(command), "settings": read}

    def _marker(self, name: str) -> Path:
        return self._folder / "done" / f"{name}.json"


def _wait(command: Sequence[str]) -> int:
    # In a session of its own, so that Ctrl-C reaches it once: from us.
    running = subprocess.Popen(bound(command), start_new_session=True)
    try:
        return running.wait()
    except KeyboardInterrupt:
        running.terminate()
        running.wait()
        raise
    finally:
        # After a second Ctrl-C.
        if running.poll() is None:
            running.kill()
            running.wait()


def _without_settings(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.startswith("--config")]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
