"""Several runs side by side."""

import dataclasses

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import comparison, eval_page, evaluation, results, samples
from tests.evaluate import made


def finished(folder, *passed, name="made", limits=made.SANDBOX):
    """A run's folder in which the tasks of `passed` pass."""
    tasks = tuple(made.task(f"f{i}", "+") for i in range(6))
    benchmark, settings = made.benchmark(*tasks, name=name), made.settings()
    made_with = evaluation.made_with(settings, benchmark, f"model {folder.name}", limits)
    samples.settle(folder, made_with, rescore=False)
    with samples.Appender(folder / samples.VERDICTS) as file:
        for i, task in enumerate(tasks):
            file.add(made.verdict(task.task_id, "" if i in passed else "TypeError"))
    results.write(
        folder, results.results(settings, benchmark, samples.read_verdicts(folder / samples.VERDICTS), made_with)
    )
    return str(folder)


def test_flips_are_counted_against_the_first_run(tmp_path):
    found = comparison.compare([finished(tmp_path / "a", 0, 1), finished(tmp_path / "b", 1, 2, 3)])
    row = next(row for row in found.rows if row.difference and row.suite == "base")
    assert (row.difference.gained, row.difference.lost) == (("made/f2", "made/f3"), ("made/f0",))
    assert row.difference.p == 1.0
    assert found.settings == {"model": ("model a", "model b")}


def test_other_limits_are_a_difference_between_runs(tmp_path):
    fewer = dataclasses.replace(made.SANDBOX, memory_mb=512)
    found = comparison.compare([finished(tmp_path / "a", 0), finished(tmp_path / "b", 0, limits=fewer)])
    limits = "wall_s 10.0, cpu_s 5, memory_mb {}, output_kb 1024".format
    assert found.settings["limits"] == (limits(1024), limits(512))


def test_a_comparison_is_written_as_text_and_as_a_page(tmp_path):
    found = comparison.compare([finished(tmp_path / "a", 0), finished(tmp_path / "b", 1)])
    assert "| 1 | 1 | 1 |" in comparison.markdown(found)
    page = eval_page.comparison_page(found)
    assert "script-src 'none'" in page
    assert page.count("made/f0") == 1


def test_runs_of_other_tasks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is of other, .* of made: compare equals"):
        comparison.compare([finished(tmp_path / "a", 0), finished(tmp_path / "b", name="other")])


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not the folder of a finished `iterpref eval`"):
        comparison.compare([finished(tmp_path / "a", 0), str(tmp_path / "b")])
