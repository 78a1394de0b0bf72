"""One update in flight: the order of reading, and what counts as waiting."""

import time

import jax.numpy as jnp
import pytest

from iterpref_jax.train.flight import Clock, Flight, Update


class Unfinished:
    """A metric that the devices still compute."""

    def is_ready(self):
        return False


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
    clock, flight = Clock(), Flight(lambda each: None)
    assert list(clock.fetched(slow_batches(3, 0.02), flight)) == [0, 1, 2]
    seconds, waited = clock.lap()
    assert 0.06 <= waited <= seconds


def test_a_wait_behind_a_computation_costs_nothing():
    clock, flight = Clock(), Flight(lambda each: None)
    flight.put(update(1, Unfinished()))
    assert list(clock.fetched(slow_batches(2, 0.02), flight)) == [0, 1]
    seconds, waited = clock.lap()
    assert waited == 0.0
    assert seconds >= 0.04


def test_what_is_done_before_a_restart_belongs_to_no_lap():
    clock = Clock()
    time.sleep(0.05)
    clock.restart()
    assert clock.lap()[0] < 0.05
