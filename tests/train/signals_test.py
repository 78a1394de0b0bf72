"""A signal on one host stops all after the same piece of work, whatever each of them has seen by then."""

import os
import signal

import hypothesis
import pytest
from hypothesis import strategies as st

from iterpref_jax.parallel import distributed
from iterpref_jax.train.signals import Stop, stop_requested

PIECES = 12


class Host:
    """A host that begins pieces of work and sees the results of each one late, as the loops do.

    The training loop asks at the end of a turn, the reference pass at its beginning.
    """

    def __init__(self, signal_at, asks_first):
        turns = []
        for piece in range(PIECES):
            turn = [("begin", piece), ("see", piece - 1)]
            turns += [("ask", piece), *turn] if asks_first else [*turn, ("ask", piece)]
        self.turns, self.place, self.begun = turns, 0, -1
        self.ended: int | None = None
        self.stop = Stop(lambda: self.place >= signal_at, "test")

    def may_go_on(self, hosts):
        """The results of a piece need every host to have begun it."""
        if self.ended is not None:
            return False
        what, piece = self.turns[self.place]
        return what != "see" or all(host.begun >= piece for host in hosts)

    def go_on(self):
        what, piece = self.turns[self.place]
        self.place += 1
        if what == "begin":
            self.begun = piece
        if (what == "ask" and self.stop.at(piece)) or self.place == len(self.turns):
            self.ended = self.begun


@hypothesis.given(
    signals=st.lists(st.one_of(st.none(), st.integers(0, 3 * PIECES)), min_size=2, max_size=4),
    asks_first=st.booleans(),
    order=st.lists(st.integers(0, 3), max_size=200),
)
def test_all_hosts_stop_after_the_same_piece(signals, asks_first, order):
    board = {}
    patched = {
        "process_count": lambda: len(signals),
        "offer": lambda key, text: board.setdefault(key, text),
        "look": board.get,
    }
    before = {name: getattr(distributed, name) for name in patched}
    for name, function in patched.items():
        setattr(distributed, name, function)
    try:
        hosts = [Host(4 * PIECES if at is None else at, asks_first) for at in signals]
        turns = iter(order)
        while any(host.ended is None for host in hosts):
            ready = [host for host in hosts if host.may_go_on(hosts)]
            assert ready, "the hosts wait for each other"
            ready[next(turns, 0) % len(ready)].go_on()
    finally:
        for name, function in before.items():
            setattr(distributed, name, function)
    [end] = {host.ended for host in hosts}
    assert end is not None
    first = min((at for at in signals if at is not None), default=3 * PIECES) // 3
    assert end <= min(PIECES - 1, first + 4)
    if first == PIECES:
        assert end == PIECES - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_the_first_signal_asks_and_the_second_one_interrupts(number, capsys):
    before = signal.getsignal(number)
    with stop_requested() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
        assert f"{number.name}: finishing this step, then saving" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
