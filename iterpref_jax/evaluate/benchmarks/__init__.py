"""The benchmarks by name: each is read from a local file (or an installed package), never from a hub."""

from iterpref_jax.evaluate.benchmarks.table import BENCHMARKS, load

__all__ = ["BENCHMARKS", "load"]
