"""One `iterpref` command in a process of its own, which ends with the process that started it.

python -m iterpref_jax.sweep.command PARENT WORD...
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_SET_DEATH_SIGNAL = 1


def main() -> None:
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        # Without it, a run would go on behind a sweep that was killed hard, and keep the next one out of its folder.
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the sweep has ended")
    sys.argv = ["iterpref", *sys.argv[2:]]
    runpy.run_module("iterpref_jax", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
