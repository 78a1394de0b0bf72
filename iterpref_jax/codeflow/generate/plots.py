"""The plots of a report on CodeFlow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from iterpref_jax.atomic import replace_bytes

Report = dict[str, Any]
MOST_ERRORS = 15


def draw(folder: Path, report: Report) -> list[tuple[str, str]]:
    """Draws what the report has numbers for into `plots/`; returns names and titles."""
    drawn = []
    for name, title, values, unit in _bars(report):
        if any(values.values()):
            _draw(folder / "plots" / f"{name}.png", title, values, unit)
            drawn.append((name, title))
    return drawn


def pass_rates(report: Report) -> list[float]:
    """Returns the share of judged tasks that passed by iteration 0, 1, ... (the paper's Figure 6)."""
    passed, rates = 0, []
    for iteration in range(report["about"]["max_refinements"] + 1):
        passed += report["passed_at"].get(str(iteration), 0)
        rates.append(passed / report["judged_tasks"] if report["judged_tasks"] else 0.0)
    return rates


def _bars(report: Report) -> list[tuple[str, str, dict[str, float], str]]:
    rates = {str(iteration): 100 * rate for iteration, rate in enumerate(pass_rates(report))}
    errors = dict(list(report["error_types"].items())[:MOST_ERRORS])
    tenths = {f"{int(tenth) * 10}%": count for tenth, count in report["coverage"].items()}
    calls = {name: group["calls"] for name, group in report["spent"].items()}
    found = [
        ("ends", "How tasks ended", report["ends"], "tasks"),
        ("errors", "Error types of failing versions", errors, "versions"),
        ("calls", "Answers by purpose", calls, "answers"),
        ("coverage", "Lines of the program that its tests run, from", tenths, "tasks"),
        ("diffs", "Differing lines of the rejected side, up to", report["diff_lines"], "pairs"),
    ]
    if not report["about"]["samples"]:
        found.insert(0, ("pass_rate", "Tasks that passed by iteration", rates, "%"))
    return found


def _draw(path: Path, title: str, values: dict[str, float], unit: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(exist_ok=True)
    upright = all(len(label) <= 5 for label in values)
    figure, axes = plt.subplots(figsize=(7, 3 if upright else 1 + 0.3 * len(values)), layout="constrained")
    labels, numbers = list(values), list(values.values())
    bars = axes.bar(labels, numbers) if upright else axes.barh(labels[::-1], numbers[::-1])
    axes.bar_label(bars, fmt="%.1f" if unit == "%" else "%d", fontsize="small")
    (axes.set_ylabel if upright else axes.set_xlabel)(unit)
    axes.margins(x=0.02 if upright else 0.12, y=0.12 if upright else 0.02)
    axes.set_title(title)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    plt.close(figure)
    replace_bytes(path, drawn.getvalue())
