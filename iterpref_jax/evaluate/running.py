"""The part of `report.md` about how a run went: speed, goodput, memory, hosts, checkpoints."""

from __future__ import annotations

from typing import Any

from etils import epath

from iterpref_jax.train.best import Best
from iterpref_jax.train.goodput import LOST, Account
from iterpref_jax.train.saved import steps_in

Lines = list[dict[str, Any]]

PHASES = ("open_s", "weights_s", "reference_s", "state_s", "evaluation_s", "compile_s", "update_s")
# Part of goodput.jsonl -> what a reader may not guess.
MEANINGS = {
    "update": "updates that were kept: the goodput",
    "input_wait": "devices waited for input",
    "compile": "tracing and compiling, or reading compiled programs",
    "evaluation": "held-out tasks",
    "checkpoint": "the part of saving that updates wait for",
    "reference": "reference log-probs",
    "start": "opening, weights, restoring",
    "other": "logging, traces",
    LOST: "updates that a later session made again, and what a session was killed in",
}
# Metric of the `hosts` lines -> its name for a person.
HOST_NUMBERS = {
    "update_s": "seconds an update",
    "input_wait_s": "of them waiting for input",
    "host_s": "of them not waiting for the devices",
    "device_gib": "device memory in use, GiB",
    "device_peak_gib": "its peak, GiB",
    "process_gib": "host memory of the process, GiB",
    "process_peak_gib": "its peak, GiB",
}


def settled(train: Lines, starts: Lines) -> Lines:
    """Returns the updates without the first one of each session, which compiles; all of them if that leaves none."""
    first = {start["step"] + 1 for start in starts} | {line["step"] for line in train[:1]}
    return [line for line in train if line["step"] not in first] or train


def speed(train: Lines, starts: Lines) -> str:
    """Returns what the devices waited for: at the start, and for input."""
    # Runs of earlier versions did not tell.
    timed = [line for line in settled(train, starts) if "step_s" in line]
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


def goodput(account: Account) -> str:
    """Returns where the time of all sessions went."""
    if not account.elapsed:
        return ""
    sessions, last = account.sessions, account.sessions[-1]
    shares = account.shares()
    rows = [
        f"| {part} | {_time(seconds)} | {shares[part]:.1%} | {MEANINGS[part]} |"
        for part, seconds in account.parts.items()
        if seconds or part == "update"
    ]
    between = f", {_time(account.between)} between them" if len(sessions) > 1 else ""
    cut = sum(not session.ended for session in sessions)
    killed = f" ({cut} of them killed)" if cut else ""
    whole = f"{_time(account.elapsed)} in {_count(len(sessions), 'session')}{killed}{between}"
    where = f"{_count(last.devices, 'device')} ({last.device}) of {_count(last.hosts, 'host process')}"
    head = f"## Goodput\n\n{shares['update']:.1%} of {whole}; the last one on {where}.\n\n"
    return head + "| part | time | share | |\n|---|---|---|---|\n" + "".join(f"{row}\n" for row in rows)


def hosts(lines: Lines) -> str:
    """Returns memory and pace of the hosts as they were told last, and whose the highest numbers were."""
    if not lines:
        return ""
    last = lines[-1]
    told = {name: words for name, words in HOST_NUMBERS.items() if last.get(name) is not None}
    if last["processes"] == 1:
        rows = [f"| {words} | {last[name]:.2f} |" for name, words in told.items()]
        head = f"## Host, after update {last['step']}\n\n| | |\n|---|---|\n"
    else:
        rows = [
            f"| {words} | {last[name]:.2f} | {last[f'{name}/process']:.0f} | {last[f'{name}/median']:.2f} |"
            for name, words in told.items()
        ]
        head = f"## Hosts, after update {last['step']}\n\n| | highest | process | middle |\n|---|---|---|---|\n"
    return head + "".join(f"{row}\n" for row in rows)


def checkpoints(folder: epath.Path, held_out: Lines, best: Best | None) -> str:
    """Returns the checkpoints that are kept, with their size and how they did on held-out tasks; the best is named."""
    steps = steps_in(folder)
    if not steps:
        return ""
    seen = {line["step"]: line for line in held_out}
    scores = best.scores(held_out) if best else {}
    chosen = best.step({step: scores[step] for step in steps if step in scores}) if best else None
    rows = []
    for step in steps:
        line, note = seen.get(step, {}), f" (best by {best.metric})" if best and step == chosen else ""
        numbers = (f"{line[name]:.4f}" if name in line else "" for name in ("loss", "focus/accuracies"))
        rows.append(f"| {step}{note} | {_size(folder / str(step)) / 1e9:.3g} | {' | '.join(numbers)} |\n")
    head = "## Checkpoints\n\n| step | GB | held-out loss | focus/accuracies |\n|---|---|---|---|\n"
    return head + "".join(rows)


def _size(folder: epath.Path) -> int:
    return sum(_size(path) if path.is_dir() else path.stat().length for path in folder.iterdir())


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{number} {what if number == 1 else plural}"
