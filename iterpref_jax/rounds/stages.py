"""Steps of a round as processes of their own, each of which is done once; memory is given back between them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from iterpref_jax.atomic import replace_text
from iterpref_jax.child import bound
from iterpref_jax.errors import GO_ON, UserError
from iterpref_jax.progress import say

# Settings that change nothing of what a stage makes: how many rounds there are, and how fast and how far all may go.
_FREE = (
    *("rounds.count", "rounds.start_s", "sandbox.workers", "endpoint.requests_per_minute"),
    *("endpoint.tokens_per_minute", "endpoint.budget_usd", "endpoint.max_calls", "endpoint.max_total_tokens"),
)


# How commands end that were told to stop and keep what they have.
_STOPPED = (GO_ON, 130)


class Stages:
    """The stages of one round: `FOLDER/done/NAME.json` holds the command of each that has ended well."""

    def __init__(self, folder: Path, title: str):
        self._folder, self._title = folder, title

    def is_done(self, name: str, command: Sequence[str]) -> bool:
        """Whether a stage has ended before; raises UserError if that was a command that makes something else."""
        marker = self._marker(name)
        if not marker.exists():
            return False
        before = json.loads(marker.read_text(encoding="utf-8"))
        changed = [word for word in (*before, *command) if (word in before) != (word in command) and not _is_free(word)]
        if changed:
            raise UserError(
                f"{marker}: the stage {name} was done with other words ({shlex.join(changed)}); take them back, delete "
                f"this file and what the stage wrote, or work in another folder"
            )
        return True

    def run(self, name: str, command: Sequence[str], result: Path, known_as: Sequence[str] = ()) -> None:
        """Runs a stage unless it is done; it must leave `result`. It is remembered as `known_as` (default: `command`).

        Raises:
            UserError: it failed; what it said stands above.
            KeyboardInterrupt: it was stopped and keeps what it has.
        """
        known_as = known_as or command
        if self.is_done(name, known_as):
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
        replace_text(marker, json.dumps(list(known_as)))

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


def _is_free(word: str) -> bool:
    return word.partition("=")[0].removeprefix("--config.") in _FREE
