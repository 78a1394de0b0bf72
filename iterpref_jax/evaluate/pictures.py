"""The pictures of `report.md`: what moved, how fast, and where the time went."""

from __future__ import annotations

import io
import itertools
import statistics
from typing import Any

from etils import epath

from iterpref_jax.train.goodput import Account

# File, title, and the metrics drawn in it; one that is 0 throughout (its tokens carry no weight) is left out.
PLOTS = (
    ("loss", "Loss", ("loss", "nll_loss", "preference_loss")),
    (
        "margins",
        "Rewards and margin (beta x log-ratio sums)",
        ("rewards/margins", "rewards/chosen", "rewards/rejected"),
    ),
    (
        "accuracies",
        "Share of pairs whose chosen side rose more: all weighted tokens, and focus against focus",
        ("rewards/accuracies", "focus/accuracies"),
    ),
    (
        "logratios",
        "Log-ratios against the reference, sums a pair",
        (
            "logratios/chosen_shared",
            "logratios/chosen_focus",
            "logratios/chosen_rest",
            "logratios/rejected_shared",
            "logratios/rejected_focus",
            "logratios/rejected_rest",
        ),
    ),
)
# Sessions in the picture of goodput, the last ones.
SESSIONS = 24
# Updates that a point of the throughput's middle line looks at.
WINDOW = 25

Lines = list[dict[str, Any]]
Picture = tuple[str, str]


def draw_metrics(folder: epath.Path, train: Lines, held_out: Lines) -> list[Picture]:
    """Draws `PLOTS` into a folder; returns name and title of those that have something to show."""
    drawn = []
    for name, title, metrics in PLOTS:
        present = [metric for metric in metrics if any(line.get(metric) for line in train)]
        if not present:
            continue
        figure, axes = _figure()
        for number, metric in enumerate(present):
            _draw(axes, train, metric, color=f"C{number}", alpha=0.4, linewidth=1)
            _draw(axes, held_out, metric, color=f"C{number}", marker="o")
            axes.plot([], [], color=f"C{number}", label=metric)
        dots = " (dots: held-out tasks)" if held_out else ""
        axes.set(title=title + dots, xlabel="update")
        _save(figure, axes, folder / f"{name}.png")
        drawn.append((name, title))
    return drawn


def draw_throughput(folder: epath.Path, updates: Lines) -> list[Picture]:
    """Draws pairs a second and the share of waits for input over the time that updates took."""
    # Runs of earlier versions did not tell their times.
    timed = [line for line in updates if "step_s" in line]
    if len(timed) < 2:
        return []
    seconds = list(itertools.accumulate(line["step_s"] for line in timed))
    unit, length = _unit(seconds[-1])
    times, rates = [second / length for second in seconds], [line["pairs_per_second"] for line in timed]
    figure, axes = _figure()
    axes.plot(times, rates, color="C0", alpha=0.4, linewidth=1)
    axes.plot(times, _middle(rates), color="C0", label="pairs/s")
    waits = axes.twinx()
    waits.plot(times, _middle([100 * line["input_wait_fraction"] for line in timed]), color="C3")
    waits.set(ylim=(0, 100), ylabel="%")
    axes.plot([], [], color="C3", label="input wait, %")
    title = "Throughput over the time of updates"
    axes.set(title=title, xlabel=unit, ylim=(0, 1.1 * max(rates)))
    _save(figure, axes, folder / "throughput.png")
    return [("throughput", title)]


def draw_goodput(folder: epath.Path, account: Account) -> list[Picture]:
    """Draws a bar a session: where its time went."""
    sessions = account.sessions[-SESSIONS:]
    if not sessions:
        return []
    figure, axes = _figure(height=1.6 + 0.35 * len(sessions))
    names = [
        f"updates {session.first + 1} to {session.last}" if session.last > session.first else "no update"
        for session in sessions
    ]
    unit, length = _unit(max(session.elapsed for session in sessions))
    lefts = [0.0] * len(sessions)
    for number, part in enumerate(account.parts):
        times = [session.parts[part] / length for session in sessions]
        if not any(times):
            continue
        axes.barh(range(len(sessions)), times, left=lefts, color=f"C{number}", label=part)
        lefts = [left + time for left, time in zip(lefts, times, strict=True)]
    axes.set_yticks(range(len(sessions)), names)
    axes.invert_yaxis()
    title = "Where the time went, a bar a session"
    axes.set(title=title, xlabel=unit)
    _save(figure, axes, folder / "goodput.png")
    return [("goodput", title)]


def _figure(height: float = 4.0) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(9, height), layout="constrained")


def _save(figure: Any, axes: Any, path: epath.Path) -> None:
    import matplotlib.pyplot as plt

    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    path.write_bytes(drawn.getvalue())
    plt.close(figure)


def _unit(seconds: float) -> tuple[str, float]:
    """Returns the unit of an axis that is so long, and the seconds of it."""
    return ("hours", 3600.0) if seconds >= 3600 else ("minutes", 60.0)


def _draw(axes: Any, lines: Lines, metric: str, **style: Any) -> None:
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _middle(values: list[float]) -> list[float]:
    """Returns for every value the median of those around it."""
    half = WINDOW // 2
    return [statistics.median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]
