"""Pages of reports."""

import resource

import pytest

from iterpref_jax.codeflow.generate import plots, report


def test_a_name_that_a_program_made_up_stays_in_its_cell():
    table = report.table(("error type", "versions"), [("E\n|x" * 100, 1)])
    assert len(table.splitlines()) == 3
    assert table.splitlines()[2].startswith("| E \\|xE")
    assert len(table) < 300


def test_a_plot_that_the_disk_does_not_take_is_not_there(tmp_path):
    report = {"about": {"samples": 2, "max_refinements": 0}, "passed_at": {}, "judged_tasks": 0, "ends": {"paired": 1}}
    report |= {"error_types": {}, "coverage": {}, "spent": {}, "diff_lines": {}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            plots.draw(tmp_path, report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "plots").iterdir()) == []
    assert plots.draw(tmp_path, report) == [("ends", "How tasks ended")]
