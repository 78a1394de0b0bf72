"""Rates and times that are left: the first unit of work compiles, and must not be taken for the others."""

import pytest

from iterpref_jax import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_does_not_count_what_came_before_the_first_unit(clock, capsys):
    with progress.progress("training", 11, "steps") as advance:
        clock[0] += 60
        advance()
        for _ in range(5):
            clock[0] += 2
            advance()
        clock[0] += 20
        advance()
    first, *_, last = capsys.readouterr().err.splitlines()
    assert "training: 1/11 steps, - steps/s, 60 s" in first
    # 5 steps of 2 s and one of 20 s: 5 s each, and 4 are left.
    assert "training: 7/11 steps, 0.2 steps/s, 20 s left" in last


def test_resumed_work_counts_what_is_left_alone(clock, capsys):
    with progress.progress("build", 100, "pairs", start=90) as advance:
        advance(2)
        clock[0] += 10
        advance(4)
    assert "build: 96/100 pairs, 0.4 pairs/s, 10 s left" in capsys.readouterr().err


def test_the_last_line_tells_how_long_all_took(clock, capsys):
    with progress.progress("build", 2, "pairs") as advance:
        clock[0] += 5
        advance(2)
    assert "build: 2/2 pairs, - pairs/s, 5 s" in capsys.readouterr().err
