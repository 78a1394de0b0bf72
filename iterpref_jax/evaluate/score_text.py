"""Scores as lines and cells of text, with what they were made with."""

from __future__ import annotations

from typing import Any

# What the origin of samples begins with that no model was asked for by us.
STORED = "samples "
# How a score was made, which it is printed with.
SHOWN = ("model", "prompt_style", "n", "temperature", "top_p", "max_new_tokens", "split", "since", "until", "limit")


def score_lines(found: dict[str, Any]) -> list[str]:
    """Returns one line a score, with what it was made with."""
    asked = found["made_with"]["samples"]
    style = "stored samples" if asked["model"].startswith(STORED) else asked["prompt_style"]
    compat = found["made_with"]["scores"]["compat"]
    return [
        f"{found['benchmark']} {score['suite']} pass@{score['k']}: {percent(score)} "
        f"({tasks(found)}, {found['samples']} samples; {style}, compat {compat})"
        for score in found["scores"]
    ]


def tasks(found: dict[str, Any]) -> str:
    """Returns how many tasks count."""
    left_out = len(found["left_out"])
    return f"{found['tasks']} of {found['tasks'] + left_out} tasks" if left_out else f"{found['tasks']} tasks"


def percent(score: dict[str, Any]) -> str:
    """Returns a score with its interval, as percentages."""
    return f"{100 * score['value']:.1f}% [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def made_with(found: dict[str, Any]) -> dict[str, str]:
    """Returns the settings behind a score by name, without those that are empty."""
    asked = found["made_with"]["samples"]
    shown = {name: str(asked[name]) for name in SHOWN if asked.get(name) not in ("", 0, None)}
    # Greedy is a choice, though it is a 0.
    shown["temperature"] = str(asked["temperature"])
    if asked["model"].startswith(STORED):
        shown = {"model": asked["model"]}
    scored = found["made_with"]["scores"]
    python = {"python": scored["python"]} if scored["python"] else {}
    sandbox = {"sandbox": ", ".join(found["sandbox"]), "limits": scored["limits"], **python}
    return {**shown, "compat": scored["compat"], "sha256": scored["sha256"], **sandbox}
