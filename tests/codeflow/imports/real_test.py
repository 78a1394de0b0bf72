"""Real histories, written down in each form, give the histories that are recorded; needs ITERPREF_DATA."""

from __future__ import annotations

import itertools

import pytest

from iterpref_jax.codeflow import rows
from tests.codeflow.imports.importing import codes, real, run_import
from tests.support.samples import EVERY

ROOMY = dict(wall_s=10.0, cpu_s=5, memory_mb=1024)
FAST = 40


def some(name: str, every: int):
    path = real("trajectories", f"{name}.jsonl.gz")
    return [row for _, row in itertools.islice(rows.read_rows(path), 0, None, every)]


def about(row):
    return {name: row[name] for name in ("instruction", "test_code", "setup_code") if name in row}


def distinct(row):
    """The failing versions without repeats, and the passing one."""
    return list(dict.fromkeys(version["code"] for version in row["versions"]))


def by_codes(trajectories):
    return sorted((trajectory.instruction, codes(trajectory)) for trajectory in trajectories)


def recorded(histories):
    return sorted((row["instruction"], distinct(row)) for row in histories)


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("dev_sample", FAST),
        ("dev_llm_turns_mbpp", FAST),
        pytest.param("dev_sample", EVERY, marks=pytest.mark.slow),
        pytest.param("dev_llm_turns_mbpp", EVERY, marks=pytest.mark.slow),
    ],
)
def test_every_recorded_verdict_is_found_again(tmp_path, name, every):
    histories = some(name, every)
    found, report = run_import(tmp_path, "trajectories", histories, **ROOMY)
    assert by_codes(found) == recorded(histories)
    assert (report.differed, report.differences) == (0, [])
    assert report.agreed == sum(len(distinct(row)) for row in histories)


def test_submission_logs_give_the_recorded_histories(tmp_path):
    histories = some("dev_sample", FAST)
    log = [
        {
            **about(row),
            "problem_id": row["meta"]["task"],
            "user_id": row["task_id"],
            "timestamp": 1000 * number,
            "source_code": version["code"],
            "verdict": "Accepted" if version["passed"] else "Wrong Answer",
        }
        for row in histories
        for number, version in enumerate(row["versions"])
    ]
    found, report = run_import(tmp_path, "submissions", log[::-1], **ROOMY)
    assert by_codes(found) == recorded(histories)
    assert report.differed == 0


def test_recorded_turns_of_models_give_the_recorded_histories(tmp_path):
    histories = some("dev_llm_turns_mbpp", FAST)
    traces = [
        {
            **about(row),
            "task_id": row["meta"]["task"],
            "messages": [
                message
                for version in row["versions"]
                for message in (
                    {"role": "assistant", "content": f"I try.\n<execute>\n{version['code']}</execute>"},
                    {"role": "user", "content": f"Observation:\n{version['stderr_tail']}"},
                )
            ],
        }
        for row in histories
    ]
    found, _ = run_import(tmp_path, "traces", traces, **ROOMY)
    assert by_codes(found) == recorded(histories)


def test_pools_of_programs_give_the_right_one_and_one_of_the_wrong(tmp_path):
    histories = some("dev_sample", FAST)
    pools = [
        {
            **about(row),
            "task_id": row["task_id"],
            "solutions": [row["versions"][-1]["code"]],
            "incorrect_solutions": [version["code"] for version in row["versions"][:-1]],
        }
        for row in histories
    ]
    found, report = run_import(tmp_path, "problems", pools, **ROOMY)
    wrong = {row["task_id"]: distinct(row)[:-1] for row in histories}
    assert [codes(trajectory)[-1] for trajectory in found] == [row["versions"][-1]["code"] for row in histories]
    assert all(codes(trajectory)[0] in wrong[trajectory.task_id] for trajectory in found)
    assert report.differed == 0


def test_human_eval_with_broken_bodies_is_a_file_of_fixes(tmp_path):
    path = real("benchmarks", "HumanEval.jsonl.gz")
    problems = [row for _, row in itertools.islice(rows.read_rows(path), 0, None, 20)]
    fixes = [{**row, "buggy_solution": "    return 'wrong'\n"} for row in problems]
    found, report = run_import(tmp_path, "fixes", fixes, **ROOMY)
    assert [trajectory.task for trajectory in found] == [row["task_id"] for row in problems]
    assert report.differed == 0


def test_leetcode_solutions_pass_with_the_code_that_their_prompt_gives(tmp_path):
    path = real("benchmarks", "LeetCodeDataset-v0.3.1-test.jsonl.gz")
    problems = [row for _, row in itertools.islice(rows.read_rows(path), 3, None, 25)]
    wrong = "class Solution:\n    def __getattr__(self, name):\n        return lambda **given: 'wrong'\n"
    found, report = run_import(
        tmp_path, "problems", [{**row, "response": "", "incorrect_solutions": [wrong]} for row in problems], **ROOMY
    )
    assert len(found) == len(problems)
    assert report.differed == 0
