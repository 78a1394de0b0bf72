"""Means, intervals and differences of finished runs, by hand."""

import json

import numpy as np
import pytest

from iterpref_jax.sweep import comparison, report
from iterpref_jax.sweep.planning import Job


def made(folder, variant, seed, values, tasks=4):
    """A finished run whose held-out pairs, two a task, have these values of one metric."""
    run = folder / "runs" / variant / f"seed-{seed}"
    (run / "heldout").mkdir(parents=True)
    rows = [
        {"pair_id": f"p{i}", "task": f"t{i % tasks}", "metrics": {"focus/margins": value}}
        for i, value in enumerate(values)
    ]
    (run / "heldout" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overall = {"metrics": {"focus/margins": {"value": float(np.mean(values)), "low": 0, "high": 0}, "gone": None}}
    (run / "heldout" / "heldout.json").write_text(json.dumps({"overall": overall}))
    line = {"step": 1, "split": "train", "pairs_per_second": 4.0, "tokens_per_second": 100.0, "step_s": 2.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return Job(variant, seed, run, (), {})


def test_the_interval_over_seeds_is_students():
    found = comparison.over_seeds([1.0, 2.0, 4.0])
    # t(0.975, 2) = 4.3027; the standard error is sqrt(7 / 3) / sqrt(3).
    assert found["mean"] == pytest.approx(7 / 3)
    assert found["high"] - found["mean"] == pytest.approx(4.302653 * np.sqrt(7 / 3) / np.sqrt(3), rel=1e-5)


def test_a_single_seed_has_no_interval():
    assert comparison.over_seeds([1.0]) == {"mean": 1.0, "low": None, "high": None, "seeds": 1}


def test_differences_are_paired_by_seed_and_by_pair(tmp_path):
    noise = np.arange(8.0) ** 2
    jobs = [made(tmp_path, "a", 0, noise), made(tmp_path, "a", 1, noise + 5)]
    jobs += [made(tmp_path, "b", 0, noise + 1), made(tmp_path, "b", 1, noise + 6)]
    found = comparison.compare(jobs, jobs, "a")["variants"]
    gap = found["b"]["difference"]["focus/margins"]
    # Seeds and pairs vary far more than the difference, which is 1 everywhere.
    assert [gap[name] for name in ("mean", "low", "high", "tasks_low", "tasks_high")] == pytest.approx([1.0] * 5)
    assert found["a"]["metrics"]["focus/margins"]["seeds"] == 2
    assert found["a"]["metrics"]["cost/pairs"]["mean"] == 8


def test_another_baseline_turns_the_differences_around(tmp_path):
    jobs = [made(tmp_path, "a", 0, [0.0] * 4), made(tmp_path, "b", 0, [1.0] * 4), made(tmp_path, "c", 0, [3.0] * 4)]
    content = comparison.compare(jobs, jobs, "b")
    gaps = {name: found.get("difference") for name, found in content["variants"].items()}
    assert gaps["b"] is None
    assert [gaps[name]["focus/margins"]["mean"] for name in "ac"] == [-1.0, 2.0]
    table = report.write(tmp_path, "made", "", content).read_text()
    assert "## Difference from `b`" in table


def test_only_seeds_that_both_have_are_compared(tmp_path):
    jobs = [made(tmp_path, "a", 0, [0.0] * 4), made(tmp_path, "b", 0, [1.0] * 4), made(tmp_path, "b", 1, [9.0] * 4)]
    found = comparison.compare(jobs, jobs, "a")["variants"]
    assert found["b"]["metrics"]["focus/margins"]["mean"] == 5.0
    assert found["b"]["difference"]["focus/margins"]["mean"] == 1.0


def test_scores_of_extra_commands_join_the_table(tmp_path):
    jobs = [made(tmp_path, variant, 0, [0.0] * 4) for variant in "ab"]
    for number, job in enumerate(jobs):
        (job.folder / "command-0").mkdir()
        scores = [{"suite": "plus", "k": 1, "value": 0.25 + number / 4, "low": 0, "high": 1}]
        (job.folder / "command-0" / "results.json").write_text(json.dumps({"benchmark": "humaneval", "scores": scores}))
    table = report.write(tmp_path, "made", "About.", comparison.compare(jobs, jobs, "a")).read_text()
    assert "humaneval/plus pass@1" in table
    assert "| b | +0.0000 [+0.0000, +0.0000] | +0.2500 |" in table
    assert (tmp_path / "humaneval_plus_pass@1.png").read_bytes().startswith(b"\x89PNG")


def test_equal_scores_of_several_commands_are_named_apart_in_their_order(tmp_path):
    job = made(tmp_path, "a", 0, [0.0] * 4)
    # 10 before 2 in the order of letters.
    for number, benchmark in ((0, "mbpp"), (2, "humaneval"), (10, "humaneval")):
        (job.folder / f"command-{number}").mkdir()
        content = {"benchmark": benchmark, "scores": [{"suite": "base", "k": 1, "value": number / 10}]}
        (job.folder / f"command-{number}" / "results.json").write_text(json.dumps(content))
    scores = {name: value for name, value in comparison.figures(job).items() if "pass@" in name}
    assert list(scores.items()) == [
        ("mbpp/base pass@1", 0.0),
        ("command-2 humaneval/base pass@1", 0.2),
        ("command-10 humaneval/base pass@1", 1.0),
    ]


def test_unfinished_runs_are_named_and_the_rest_is_shown(tmp_path):
    jobs = [made(tmp_path, "a", 0, [1.0] * 4), Job("b", 0, tmp_path / "nowhere", (), {})]
    content = comparison.compare(jobs, jobs[:1], "a")
    table = report.write(tmp_path, "made", "About.", content).read_text()
    assert "Not finished: b/seed-0." in table
    assert "| a | 1.0000 |" in table
    assert json.loads((tmp_path / "results.json").read_text())["variants"]["b"]["metrics"] == {}
