"""One update in flight: the order of reading, and what counts as waiting."""

import threading
import time

import jax.numpy as jnp
import pytest

from iterpref_jax.train.flight import Clock, Flight, Update
from iterpref_jax.train.tally import Tally


class Unfinished:
    """A metric that the devices compute for so many seconds."""

    def __init__(self, seconds=10.0):
        self.ready = threading.Event()
        timer = threading.Timer(seconds, self.ready.set)
        timer.daemon = True
        timer.start()

    def is_ready(self):
        return self.ready.is_set()

    def block_until_ready(self):
        self.ready.wait()


def update(number, metric=None):
    return Update(number, {"loss": jnp.zeros(()) if metric is None else metric}, None)


def test_an_update_is_read_when_the_next_one_was_handed_over():
    read = []
    flight = Flight(lambda each: read.append(each.number))
    for number in (1, 2, 3):
        flight.put(update(number))
        assert read == list(range(1, number))
    flight.land()
    flight.land()
    assert read == [1, 2, 3]


def test_an_update_that_is_refused_stops_the_ones_behind_it():
    def refuse(each):
        raise ValueError(each.number)

    flight = Flight(refuse)
    flight.put(update(1))
    with pytest.raises(ValueError, match="1"):
        flight.put(update(2))


def slow_batches(count, seconds):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_a_wait_counts_where_the_devices_had_nothing_to_do():
    clock, flight = Clock(Tally()), Flight(lambda each: None)
    assert list(clock.fetched(slow_batches(3, 0.02), flight)) == [0, 1, 2]
    lap = clock.lap()
    assert 0.06 <= lap.input_wait <= lap.seconds


def test_a_wait_behind_a_computation_costs_nothing():
    clock, flight = Clock(Tally()), Flight(lambda each: None)
    flight.put(update(1, Unfinished()))
    assert list(clock.fetched(slow_batches(2, 0.02), flight)) == [0, 1]
    lap = clock.lap()
    assert lap.input_wait == 0.0
    assert lap.seconds >= 0.04


def test_a_wait_that_outlasts_the_computation_counts_from_its_end():
    clock, flight = Clock(Tally()), Flight(lambda each: None)
    flight.put(update(1, Unfinished(seconds=0.3)))
    assert list(clock.fetched(slow_batches(1, 0.4), flight)) == [0]
    # A busy machine can make it longer, never as long as the whole wait.
    assert 0.05 < clock.lap().input_wait < 0.35


def test_what_is_done_before_a_restart_belongs_to_no_lap_but_to_the_tally():
    tally = Tally()
    clock = Clock(tally)
    time.sleep(0.05)
    clock.restart("evaluation")
    assert clock.lap().seconds < 0.05
    assert tally.seconds()[1]["evaluation"] >= 0.05


def test_an_update_that_this_host_did_not_wait_for_kept_it_busy():
    clock = Clock(Tally())
    # The first update compiles, and says nothing of the host.
    clock.lap()
    assert "update_s" not in clock.pace.take()
    time.sleep(0.03)
    with clock.waits_for_devices():
        time.sleep(0.05)
    clock.lap()
    told = clock.pace.take()
    assert told["host_s"] >= 0.03
    assert told["update_s"] - told["host_s"] >= 0.05
    assert "update_s" not in clock.pace.take()
