"""Pages of reports."""

from iterpref_jax.codeflow.generate import report


def test_a_name_that_a_program_made_up_stays_in_its_cell():
    table = report.table(("error type", "versions"), [("E\n|x" * 100, 1)])
    assert len(table.splitlines()) == 3
    assert table.splitlines()[2].startswith("| E \\|xE")
    assert len(table) < 300
