"""A run of three sessions, killed, stopped and finished: its account of time, and its report after each."""

import signal

import pytest

from iterpref_jax.train import goodput
from tests.support.runs import CONFIG, make_dataset, overrides, run_cli

pytestmark = pytest.mark.slow

# So that a session of seconds tells of itself as one of hours does.
OFTEN = "from iterpref_jax.train import goodput\ngoodput.SLICE_S = 0.05\n"
# Sends a signal to itself in an update.
SIGNAL = """
import os, signal, time
from iterpref_jax.train.loop import Trainer
update = Trainer._update
def update_and_signal(self, state, batch, done):
    if done == {at}:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.{name})
    return update(self, state, batch, done)
Trainer._update = update_and_signal
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The folder of the run, and its report after it was stopped and after it was finished."""
    folder = tmp_path_factory.mktemp("sessions")
    dataset, workdir = make_dataset(folder), folder / "run"
    words = ("train", CONFIG, f"--workdir={workdir}", *overrides(dataset))
    # Checkpoints are written in the background: that of update 4 may be cut off, that of update 2 is whole.
    killed = run_cli(*words, cache=folder, code=OFTEN + SIGNAL.format(at=6, name="SIGKILL"), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stopped = run_cli(*words, cache=folder, code=OFTEN + SIGNAL.format(at=5, name="SIGTERM"), check=False)
    assert stopped.returncode == 75
    assert "stopped after step 5" in stopped.stderr
    first = (workdir / "report.md").read_text()
    run_cli(*words, cache=folder)
    return workdir, first, (workdir / "report.md").read_text()


def test_updates_that_were_made_again_are_lost_time(reports):
    killed, stopped, finished = goodput.account(goodput.read(reports[0] / goodput.FILE)).sessions
    assert not killed.ended
    assert stopped.ended
    assert finished.ended
    assert (killed.first, stopped.last, finished.first, finished.last) == (0, 5, 5, 6)
    assert stopped.first in (2, 4)
    # At least the half second before it was killed.
    assert killed.parts[goodput.LOST] > 0.4
    assert stopped.parts[goodput.LOST] == pytest.approx(0, abs=0.3)


def test_every_second_of_a_session_that_ended_has_a_part(reports):
    for session in goodput.account(goodput.read(reports[0] / goodput.FILE)).sessions:
        assert sum(session.parts.values()) == pytest.approx(session.elapsed, rel=0.02)


def test_a_stopped_run_has_a_report_of_all_its_sessions(reports):
    assert "5 updates of 6 (stopped; the same command goes on)" in reports[1]
    assert "in 2 sessions (1 of them killed)" in reports[1]
    assert "\n6 updates;" in reports[2]
    assert "in 3 sessions (1 of them killed)" in reports[2]
    assert "| lost |" in reports[2]
