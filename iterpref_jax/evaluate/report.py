"""`report.md` of a training run: a table of before and after, and plots of what moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iterpref_jax.errors import UserError
from iterpref_jax.train.metrics import read_metrics

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
TABLE = (
    "loss",
    "nll_loss",
    "preference_loss",
    "focus/accuracies",
    "focus/margins",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
)
PHASES = ("open_s", "weights_s", "reference_s", "evaluation_s", "compile_s", "update_s")
EXPLANATION = """\
Rewards are beta times the sum of log-ratios (policy against reference) over the *weighted* tokens of a side: under a
focal recipe the rejected side is its focus alone. At step 0 the policy is the reference, so every reward is 0 and the
preference loss is ln 2 = 0.6931 (and accuracies count rounding errors of ties). `rewards/accuracies` sets all of the
repair against the wrong lines alone, so whatever raises likelihood at large (the NLL term) raises it too. `focus/*` is
like for like: the differing lines of the repair against those of the bug, log-ratio sums where the two differ. Both
measure ranking of repairs above bugs on tasks that were not trained on, not the ability to write programs.
"""


def write(workdir: str) -> Path:
    """Writes report.md and its plots into a run's folder; returns the path of report.md.

    Raises:
        UserError: the folder holds no metrics.
    """
    folder = Path(workdir)
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        raise UserError(f"{metrics} does not exist: {workdir} is not the folder of a training run")
    lines = read_metrics(metrics)
    train, held_out = ([line for line in lines if line["split"] == split] for split in ("train", "eval"))
    starts = [line for line in lines if line["split"] == "start"]
    parts = [f"# Run {folder.name}\n", _summary(train), _speed(train, starts), _held_out_table(held_out), EXPLANATION]
    parts += [f"![{title}]({name}.png)\n" for name, title in _plot_all(folder, train, held_out)]
    report = folder / "report.md"
    report.write_text("\n".join(parts))
    return report


def _summary(train: list[dict[str, Any]]) -> str:
    if not train:
        return "No update was made.\n"
    # The first update compiles.
    timed = train[1:] or train
    rate, tokens = (sum(line[key] for line in timed) / len(timed) for key in ("pairs_per_second", "tokens_per_second"))
    padding = sum(line["padding_fraction"] for line in timed) / len(timed)
    last = train[-1]
    return (
        f"{last['step']} updates; {rate:.1f} pairs/s, {tokens:.0f} tokens/s, {padding:.0%} padding; "
        f"training loss {train[0]['loss']:.4f} -> {last['loss']:.4f}.\n"
    )


def _speed(train: list[dict[str, Any]], starts: list[dict[str, Any]]) -> str:
    """Returns what the devices waited for: at the start, and for input."""
    # Runs of earlier versions did not tell.
    timed = [line for line in train[1:] if "step_s" in line]
    if not (timed and starts):
        return ""
    start, seconds = starts[-1], sum(line["step_s"] for line in timed)
    rows = sum(line["rows_per_second"] * line["step_s"] for line in timed) / seconds
    waited = sum(line["input_wait_s"] for line in timed) / seconds
    phases = ", ".join(f"{name[:-2]} {spent:.1f}" for name, spent in start.items() if name in PHASES)
    return (
        f"First update after {start['time_to_first_step_s']:.1f} s ({phases}). Waiting for input: {waited:.1%} of the "
        f"time; a thread of the pipeline lays out {start['input_rows_per_second']:.0f} rows/s, the updates take "
        f"{rows:.1f}.\n"
    )


def _held_out_table(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return "There is no held-out split (build.eval_fraction = 0), so nothing is said of unseen tasks.\n"
    first, last = lines[0], lines[-1]
    rows = [f"| {name} | {first[name]:.4f} | {last[name]:.4f} |" for name in TABLE if name in last]
    head = f"## Held-out tasks\n\n| | step {first['step']} | step {last['step']} |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _plot_all(folder: Path, train: list[dict], held_out: list[dict]) -> list[tuple[str, str]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    for name, title, metrics in PLOTS:
        present = [metric for metric in metrics if any(line.get(metric) for line in train)]
        if not present:
            continue
        figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
        for number, metric in enumerate(present):
            _draw(axes, train, metric, color=f"C{number}", alpha=0.4, linewidth=1)
            _draw(axes, held_out, metric, color=f"C{number}", marker="o")
            axes.plot([], [], color=f"C{number}", label=metric)
        dots = " (dots: held-out tasks)" if held_out else ""
        axes.set(title=title + dots, xlabel="update")
        axes.grid(alpha=0.3)
        figure.legend(fontsize="small", loc="outside right upper")
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)
        drawn.append((name, title))
    return drawn


def _draw(axes, lines: list[dict], metric: str, **style) -> None:
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
