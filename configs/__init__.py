"""Experiment configs; `base.py` holds every field once."""
