"""Focal preference learning of code models in JAX (IterPref / Target-DPO)."""

__version__ = "0.1.0"
