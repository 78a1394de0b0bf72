"""A command in a process of its own that ends with the one that started it, however that one ends.

python -m iterpref_jax.child PARENT COMMAND WORD...
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_SET_DEATH_SIGNAL = 1


def bound(command: Sequence[str]) -> list[str]:
    """Returns the command to start instead: the same, told to end (SIGTERM) when this process has (Linux)."""
    return [sys.executable, "-m", "iterpref_jax.child", str(os.getpid()), *command]


def main() -> None:
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        # Without it, a run would go on behind a sweep that was killed hard, and keep the next one out of its folder.
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the process that started this command has ended")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
