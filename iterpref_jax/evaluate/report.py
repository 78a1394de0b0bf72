"""`report.md` of a training run: a table of before and after, plots of what moved, and how the run went."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import pictures, running
from iterpref_jax.train import goodput
from iterpref_jax.train.best import Best, parse_best
from iterpref_jax.train.metrics import read_metrics

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
GROUP_TABLE = ("rewards/accuracies", "rewards/margins", "focus/accuracies")
EXPLANATION = """\
Rewards are beta times the sum of log-ratios (policy against reference) over the *weighted* tokens of a side: under a
focal recipe the rejected side is its focus alone. At step 0 the policy is the reference, so every reward is 0 and the
preference loss is ln 2 = 0.6931 (and accuracies count rounding errors of ties). `rewards/accuracies` sets all of the
repair against the wrong lines alone, so whatever raises likelihood at large (the NLL term) raises it too. `focus/*` is
like for like: the differing lines of the repair against those of the bug, log-ratio sums where the two differ. Both
measure ranking of repairs above bugs on tasks that were not trained on, not the ability to write programs.
"""


def write(workdir: str) -> epath.Path:
    """Writes report.md and its plots into a run's folder, local or in a bucket, finished or not; returns its path.

    Raises:
        UserError: the folder holds no run.
    """
    folder = epath.Path(workdir)
    metrics, times = folder / "metrics.jsonl", folder / goodput.FILE
    if not (metrics.exists() or times.exists()):
        raise UserError(f"{metrics} does not exist: {workdir} is not the folder of a training run")
    lines = read_metrics(metrics) if metrics.exists() else []
    train, held_out, starts, hosts = (
        [line for line in lines if line["split"] == split] for split in ("train", "eval", "start", "hosts")
    )
    account = goodput.account(goodput.read(times))
    parts = [f"# Run {folder.name}\n", _summary(train, starts), running.speed(train, starts), _held_out_table(held_out)]
    parts += [EXPLANATION, _group_table(held_out), *_shown(pictures.draw_metrics(folder, train, held_out))]
    parts += [running.goodput(account), *_shown(pictures.draw_goodput(folder, account))]
    parts += _shown(pictures.draw_throughput(folder, running.settled(train, starts)))
    parts += [running.hosts(hosts), running.checkpoints(folder / "checkpoints", held_out, _best(folder))]
    report = folder / "report.md"
    report.write_text("\n".join(filter(None, parts)))
    return report


def _best(folder: epath.Path) -> Best | None:
    """Returns what the run's best checkpoint is chosen by, if it is."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    # Runs of earlier versions had no such choice.
    return parse_best(config.get("train", {}).get("keep_best", ""))


def _shown(drawn: list[tuple[str, str]]) -> list[str]:
    return [f"![{title}]({name}.png)\n" for name, title in drawn]


def _summary(train: list[dict[str, Any]], starts: list[dict[str, Any]]) -> str:
    if not train:
        return "No update was made.\n"
    timed = running.settled(train, starts)
    rate, tokens = (sum(line[key] for line in timed) / len(timed) for key in ("pairs_per_second", "tokens_per_second"))
    padding = sum(line["padding_fraction"] for line in timed) / len(timed)
    last = train[-1]
    # Runs of earlier versions did not tell.
    planned = starts[-1].get("planned_updates", last["step"]) if starts else last["step"]
    stopped = f" of {planned} (stopped; the same command goes on)" if last["step"] < planned else ""
    return (
        f"{last['step']} updates{stopped}; {rate:.1f} pairs/s, {tokens:.0f} tokens/s, {padding:.0%} padding; "
        f"training loss {train[0]['loss']:.4f} -> {last['loss']:.4f}.\n"
    )


def _group_table(lines: list[dict[str, Any]]) -> str:
    """Returns the metrics of groups of held-out pairs at the end; runs without preference have none."""
    last = lines[-1] if lines else {}
    groups = [name.removesuffix("/pairs") for name in last if name.endswith("/pairs")]
    if not groups:
        return ""
    rows = []
    for group in groups:
        values = (last.get(f"{group}/{metric}") for metric in GROUP_TABLE)
        cells = " | ".join("" if value is None else f"{value:.4f}" for value in values)
        rows.append(f"| {group} | {last[f'{group}/pairs']} | {cells} |\n")
    head = f"### By group, step {last['step']}\n\n| | pairs | {' | '.join(GROUP_TABLE)} |\n|---|---|---|---|---|\n"
    return head + "".join(rows)


def _held_out_table(lines: list[dict[str, Any]]) -> str:
    if not lines:
        return "There is no held-out split (build.eval_fraction drew no task), so nothing is said of unseen tasks.\n"
    first, last = lines[0], lines[-1]
    rows = [f"| {name} | {first[name]:.4f} | {last[name]:.4f} |" for name in TABLE if name in last]
    head = f"## Held-out tasks\n\n| | step {first['step']} | step {last['step']} |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"
