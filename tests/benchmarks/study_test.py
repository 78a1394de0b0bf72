"""The study: its variants are runs, and no task by which it is scored was trained on."""

import json

import pytest

from iterpref_jax import settings
from iterpref_jax.cli import sweep
from iterpref_jax.codeflow import records, rows
from iterpref_jax.data.chunks import split_of
from tests.support.runs import ROOT

SWEEP = ROOT / "benchmarks" / "study_sweep.py"
VERSIONS = tuple(
    records.Version(code=code, passed=passed, error_type=None, stderr_tail="")
    for code, passed in (("def f(): return 0\n", False), ("def f(): return 1\n", True))
)


def history(name):
    return records.Trajectory(
        task_id=f"{name}/history", source="made", instruction=f"Write {name}.\nassert f() == 1",
        test_code="assert f() == 1\n", setup_code="", versions=VERSIONS, meta={"task": name},
    )  # fmt: skip


def mbpp(number, text):
    return {
        "task_id": number, "text": text, "code": "def f(): return 1\r\n", "test_list": ["assert f() == 1"],
        "test_setup_code": "",
    }  # fmt: skip


@pytest.mark.parametrize("arg", ["", ",full"])
def test_every_variant_is_a_run_that_is_scored(arg, tmp_path):
    file = tmp_path / "input.jsonl"
    file.write_text("")
    jobs = sweep.make_planner(f"{SWEEP}:folder={tmp_path},seeds=3{arg}", str(tmp_path), [str(file)], []).jobs()
    assert len(jobs) == 7 * 3
    assert {len([step for step in job.steps if step.name.startswith("command")]) for job in jobs} == {2 if arg else 1}
    assert len({str(sorted(job.identity.items())) for job in jobs}) == len(jobs)


def test_it_is_scored_by_held_out_tasks_and_by_tasks_of_mbpp_that_no_history_holds(benchmark_module, tmp_path):
    histories = [history(f"task-{number}") for number in range(40)]
    records.write_trajectories(tmp_path / "histories.jsonl", histories)
    tasks = [mbpp(5, "An example."), mbpp(511, "Write task-3."), mbpp(600, "A new one.")]
    rows.write_rows(tmp_path / "mbpp.jsonl", tasks)
    study = benchmark_module("study")
    words = [f"--trajectories={tmp_path / 'histories.jsonl'}", f"--mbpp={tmp_path / 'mbpp.jsonl'}", "--full"]
    build = settings.read_section(settings.load_config("configs/base.py", ["build.eval_fraction=0.25"]), "build")
    study._write_tasks(tmp_path, study.parse([*words, f"--out={tmp_path}"]), build)
    found = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    held_out = {each.task_id for each in histories if split_of(each.task, build) == "eval"}
    assert held_out
    assert {row["task_id"] for row in found} == held_out | {"mbpp/600"}


def test_a_spread_takes_what_was_asked_for_from_the_first_on(benchmark_module):
    spread = benchmark_module("study")._spread
    assert spread(range(18), 16) == sorted(set(spread(range(18), 16)))
    assert [len(spread(range(18), most)) for most in (0, 4, 16, 30)] == [18, 4, 16, 18]
