"""Focal preference learning of code models in JAX (IterPref / Target-DPO)."""

import time

__version__ = "0.1.0"
# The first import of ours: what the time to the first update counts from.
STARTED = time.monotonic()
